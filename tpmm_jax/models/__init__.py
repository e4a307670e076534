"""Decoders as pure functions of their parameters.

``Decoder`` is all that is static about running a model: hashable, so that it can
be a static argument of jit. Parameters are a nested dict of arrays; those of the
layers carry a leading L axis.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from tpmm_jax.axes import Params
from tpmm_jax.mesh import BATCH, TENSOR, constrain, first_device, sharding
from tpmm_jax.models.config import (
    ExpertsConfig,
    ModelConfig,
    RopeConfig,
    check_memory,
)
from tpmm_jax.models.experts import Aux
from tpmm_jax.models.flash import has_kernel
from tpmm_jax.models.layers import Cache, einsum, soft_cap
from tpmm_jax.models.lora import (
    WHOLE,
    Adapted,
    LoraConfig,
    abstract_adapters,
    variables,
)
from tpmm_jax.models.noise import NO_NOISE, NoiseConfig, Noisy, row_keys
from tpmm_jax.models.sequences import Sequences, from_mask
from tpmm_jax.models.transformer import Forward, Transformer

__all__ = [
    "NO_NOISE",
    "Adapted",
    "Aux",
    "DecodeState",
    "Decoder",
    "ExpertsConfig",
    "Forward",
    "LoraConfig",
    "ModelConfig",
    "NoiseConfig",
    "Noisy",
    "RopeConfig",
    "Sequences",
    "from_mask",
    "soft_cap",
]


class DecodeState(NamedTuple):
    """What decoding carries from token to token.

    Attributes:
      cache: keys and values [L, B, S, G, E].
      slots: the tokens of the cache's slots [B, S]; padding where nothing is yet.
      next_slot: where all rows write next, int32 scalar.
    """

    cache: Cache
    slots: Sequences
    next_slot: jax.Array


@dataclass(frozen=True)
class Decoder:
    """A decoder architecture with its numerics and its place on a mesh.

    Attributes:
      config: the architecture.
      compute_dtype: of activations and matrix products, "float32" or "bfloat16";
        softmax, norms, rotary angles and log-probabilities are float32 always.
      remat: recompute each layer in the backward pass.
      mesh: where it runs; None for the default device.
      lora: how a policy is adapted in training; None: all weights are trained.
      chunk_bytes: of one block of float32 logits on a device, in log-probs; larger
        blocks are faster on accelerators, smaller ones leaner.
      noise: of training, where the parameters come with a key (Noisy).
      attention: "auto", by cuDNN's kernels where there are some, or "xla".
    """

    config: ModelConfig
    compute_dtype: str = "float32"
    remat: bool = True
    mesh: Mesh | None = None
    lora: LoraConfig | None = None
    chunk_bytes: int = 32 * 2**20
    noise: NoiseConfig = NO_NOISE
    attention: str = "auto"

    def module(self) -> Transformer:
        dtype = jnp.dtype(self.compute_dtype)
        return Transformer(
            self.config, dtype, self.mesh, self.remat, self.noise, self.flash
        )

    @property
    def flash(self) -> bool:
        """Whether attention is computed by cuDNN where there is no cache."""
        if self.attention != "auto" or self.compute_dtype == "float32":
            return False  # without asking for devices
        sizes = {} if self.mesh is None else dict(self.mesh.shape)
        device = first_device(self.mesh)
        return has_kernel(self.config, self.compute_dtype, device, sizes)

    def init(self, key: jax.Array, dtype: str = "float32") -> Params:
        """Returns random parameters, each on its sharding.

        Raises:
          BadInput: more weights than this machine has memory for.
        """
        check_memory(4 * self.num_params)

        def make(key: jax.Array) -> Params:
            one = jnp.zeros((1, 1), jnp.int32)
            params = nn.unbox(self.module().init(key, Sequences(one, one, one)))
            return jax.tree.map(lambda x: x.astype(dtype), params["params"])

        where = jax.tree.map(lambda x: x.sharding, self.abstract_params(dtype))
        return jax.jit(make, out_shardings=where)(key)

    def abstract_params(self, dtype: str = "float32") -> Params:
        """Returns the shapes, dtypes and shardings of the parameters."""
        # A copy: the dicts are the caller's.
        return jax.tree.map(lambda x: x, _abstract_params(self, dtype))

    def abstract_trained(self) -> Params:
        """Returns the shapes and shardings of what is trained, float32."""
        params = self.abstract_params("float32")
        return params if self.lora is None else abstract_adapters(params, self.lora)

    @property
    def num_params(self) -> int:
        """Number of weights."""
        return sum(x.size for x in jax.tree.leaves(self.abstract_params()))

    def hidden(
        self, params: Params | Adapted | Noisy, sequences: Sequences
    ) -> Float[Array, "B T D"]:
        """Returns the final hidden states, after the last norm, in compute_dtype."""
        return self.forward(params, sequences).hidden

    def forward(
        self, params: Params | Adapted | Noisy, sequences: Sequences
    ) -> Forward:
        """Returns all that a forward pass returns."""
        collections: dict[str, Params]
        key = None
        if isinstance(params, Noisy):
            params, key = params
        elif isinstance(params, Adapted):
            key = params.dropout_key
        keys_B = None if key is None else row_keys(key, sequences)
        if isinstance(params, Adapted):
            assert self.lora is not None
            low_rank = variables(params, self.lora, sequences)
            whole = {k: params.adapters[k] for k in WHOLE if k in params.adapters}
            collections = {"params": {**params.base, **whole}, "lora": low_rank}
        else:
            collections = {"params": params}
        result: Any = self.module().apply(collections, sequences, keys_B=keys_B)
        return result[0]

    def rewards(
        self, params: Params | Adapted | Noisy, sequences: Sequences
    ) -> Float[Array, " B"]:
        """Returns the reward of each row's sequence, float32.

            reward = score . h,    h the hidden state of the last real token

        That token is found by the mask, never by ids: see docs/rewards.md.

        Args:
          sequences: one a row, padded on either side; of a row of padding alone the
            reward means nothing.
        """
        return self.rewards_and_aux(params, sequences)[0]

    def rewards_and_aux(
        self, params: Params | Adapted | Noisy, sequences: Sequences
    ) -> tuple[Float[Array, " B"], Aux]:
        """Returns ``rewards`` and what each layer reports beside them, [L, B, ...]."""
        assert self.config.output == "reward"
        forward = self.forward(params, sequences)
        places_BT = jnp.where(
            sequences.segments_BT > 0, jnp.arange(sequences.segments_BT.shape[1]), 0
        )
        last_B11 = jnp.max(places_BT, axis=1)[:, None, None]
        last_BD = jnp.take_along_axis(forward.hidden, last_B11, axis=1)[:, 0]
        rewards = einsum("BD,DN->BN", last_BD, forward.head, dtype="float32")[:, 0]
        return rewards, forward.aux

    def head(self, params: Params) -> Float[Array, "V D"]:
        """Returns the output embedding, the input's where they are tied."""
        return params["embedding" if self.config.tie_embeddings else "head"]

    def logits(
        self, params: Params, hidden: Float[Array, "B T D"]
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits, soft-capped where the family does so."""
        logits = einsum(
            "BTD,VD->BTV", hidden, self.head(params), dtype=self.compute_dtype
        )
        logits = constrain(logits, self.mesh, BATCH, None, TENSOR)
        return soft_cap(logits, self.config.final_softcap)

    def for_decoding(self, params: Params) -> Params:
        """Returns the matrices in compute_dtype, cast once instead of every token."""
        if self.compute_dtype == "float32":
            return params
        return _cast_matrices(params, self.compute_dtype)

    def prefill(
        self,
        params: Params,
        sequences: Sequences,
        *,
        new_tokens: int,
    ) -> tuple[Float[Array, "B D"], DecodeState]:
        """Reads prompts; returns each row's last hidden state and a cache.

        Args:
          sequences: one prompt per row, left-padded.
          new_tokens: how many more tokens the cache must have room for.
        """
        c, (B, T) = self.config, sequences.tokens_BT.shape
        shape = (c.num_layers, B, T + new_tokens, c.num_kv_heads, c.head_dim)
        zeros = constrain(
            jnp.zeros(shape, self.compute_dtype), self.mesh, None, BATCH, None, TENSOR
        )
        empty = jnp.zeros((B, T + new_tokens), jnp.int32)
        state = DecodeState(
            (zeros, zeros), Sequences(empty, empty, empty), jnp.int32(0)
        )
        return self._read(params, sequences, state)

    def decode(
        self, params: Params, tokens_B: Int[Array, " B"], state: DecodeState
    ) -> tuple[Float[Array, "B D"], DecodeState]:
        """Reads one more token per row; returns its hidden state and the new cache."""
        take_last = functools.partial(
            jax.lax.dynamic_slice_in_dim,
            start_index=state.next_slot - 1,
            slice_size=1,
            axis=1,
        )
        token = Sequences(
            tokens_B[:, None],
            take_last(state.slots.positions_BT) + 1,
            take_last(state.slots.segments_BT),
        )
        return self._read(params, token, state)

    def _read(
        self, params: Params, sequences: Sequences, state: DecodeState
    ) -> tuple[Float[Array, "B D"], DecodeState]:
        """Reads tokens into the next slots; returns the last one's hidden state."""
        slots = Sequences(
            *(
                jax.lax.dynamic_update_slice_in_dim(old, new, state.next_slot, axis=1)
                for old, new in zip(state.slots, sequences)
            )
        )
        result: Any = self.module().apply(
            {"params": params}, sequences, slots, state.cache, state.next_slot
        )
        forward, cache = result
        next_slot = state.next_slot + sequences.tokens_BT.shape[1]
        return forward.hidden[:, -1], DecodeState(cache, slots, next_slot)


@functools.partial(jax.jit, static_argnames="dtype")
def _cast_matrices(params: Params, dtype: str) -> Params:
    # Norm scales and routers stay: they are used in float32.
    kept = ("scale", "router")
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key in kept else x.astype(dtype), params
    )


@functools.cache
def _declared(config: ModelConfig) -> Any:
    """Returns the parameters as they are declared, with the axes that they lie on."""
    one: Any = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = Decoder(config).module().init
    return jax.eval_shape(init, key, Sequences(one, one, one))


@functools.cache
def _abstract_params(decoder: Decoder, dtype: str) -> Params:
    boxed = _declared(decoder.config)
    specs = nn.get_partition_spec(boxed)["params"]

    def place(x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> Any:
        where = sharding(decoder.mesh, x.shape, *spec) if decoder.mesh else None
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=where)

    return jax.tree.map(place, nn.unbox(boxed)["params"], specs)
