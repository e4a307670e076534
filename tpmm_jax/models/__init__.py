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
from tpmm_jax.mesh import BATCH, TENSOR, constrain, sharding
from tpmm_jax.models.config import ModelConfig, RopeConfig
from tpmm_jax.models.layers import Cache, matmul_precision, soft_cap
from tpmm_jax.models.lora import Adapted, LoraConfig, abstract_adapters, variables
from tpmm_jax.models.transformer import Transformer

__all__ = [
    "Adapted",
    "DecodeState",
    "Decoder",
    "LoraConfig",
    "ModelConfig",
    "RopeConfig",
    "soft_cap",
]


class DecodeState(NamedTuple):
    """What decoding carries from token to token.

    Attributes:
      cache: keys and values [L, B, S, G, E].
      valid_BS: 1 where a slot holds a real token.
      next_position_B: position of the next token of each row.
      next_slot: where all rows write next, int32 scalar.
    """

    cache: Cache
    valid_BS: jax.Array
    next_position_B: jax.Array
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
    """

    config: ModelConfig
    compute_dtype: str = "float32"
    remat: bool = True
    mesh: Mesh | None = None
    lora: LoraConfig | None = None

    def module(self) -> Transformer:
        dtype = jnp.dtype(self.compute_dtype)
        return Transformer(self.config, dtype, self.mesh, self.remat)

    def init(self, key: jax.Array, dtype: str = "float32") -> Params:
        """Returns random parameters, each on its sharding."""

        def make(key: jax.Array) -> Params:
            tokens = jnp.zeros((1, 1), jnp.int32)
            allowed = jnp.ones((1, 1, 1), bool)
            params = nn.unbox(self.module().init(key, tokens, tokens, allowed))
            return jax.tree.map(lambda x: x.astype(dtype), params["params"])

        if self.mesh is None:
            return jax.jit(make)(key)
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

    def hidden(
        self,
        params: Params | Adapted,
        tokens_BT: Int[Array, "B T"],
        mask_BT: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Returns the final hidden states, after the last norm, in compute_dtype.

        Args:
          tokens_BT: token ids; what stands at padding does not matter.
          mask_BT: 1 = token; padding may be on either side.
        """
        return self.hidden_and_head(params, tokens_BT, mask_BT)[0]

    def hidden_and_head(
        self,
        params: Params | Adapted,
        tokens_BT: Int[Array, "B T"],
        mask_BT: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        """Returns the hidden states and the output embedding, for a loss of both.

        Where embeddings are tied, taking the head from here halves the memory of
        their gradient.
        """
        allowed_BTS = causal(tokens_BT.shape[1]) & (mask_BT > 0)[:, None, :]
        collections: dict[str, Params]
        if isinstance(params, Adapted):
            assert self.lora is not None
            low_rank = variables(params, self.lora, tokens_BT, mask_BT)
            collections = {"params": params.base, "lora": low_rank}
        else:
            collections = {"params": params}
        hidden_BTD, head_VD, _ = self.module().apply(
            collections, tokens_BT, positions(mask_BT), allowed_BTS
        )
        return hidden_BTD, head_VD

    def head(self, params: Params) -> Float[Array, "V D"]:
        """Returns the output embedding, the input's where they are tied."""
        return params["embedding" if self.config.tie_embeddings else "head"]

    def logits(
        self, params: Params, hidden: Float[Array, "B T D"]
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits, soft-capped where the family does so."""
        dtype = self.compute_dtype
        logits = jnp.einsum(
            "BTD,VD->BTV",
            hidden.astype(dtype),
            self.head(params).astype(dtype),
            precision=matmul_precision(dtype),
            preferred_element_type=jnp.float32,
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
        tokens_BT: Int[Array, "B T"],
        mask_BT: Int[Array, "B T"],
        *,
        new_tokens: int,
    ) -> tuple[Float[Array, "B D"], DecodeState]:
        """Reads left-padded prompts; returns the last hidden state and a cache.

        Args:
          new_tokens: how many more tokens the cache must have room for.
        """
        c, (B, T) = self.config, tokens_BT.shape
        shape = (c.num_layers, B, T + new_tokens, c.num_kv_heads, c.head_dim)
        cache = tuple(
            constrain(
                jnp.zeros(shape, self.compute_dtype),
                self.mesh,
                None,
                BATCH,
                None,
                TENSOR,
            )
            for _ in range(2)
        )
        valid_BS = jnp.pad(mask_BT, ((0, 0), (0, new_tokens)))
        allowed = jnp.pad(causal(T), ((0, 0), (0, 0), (0, new_tokens)))
        hidden_BTD, _, cache = self.module().apply(
            {"params": params},
            tokens_BT,
            positions(mask_BT),
            allowed & (valid_BS > 0)[:, None, :],
            cache,
            jnp.int32(0),
        )
        state = DecodeState(cache, valid_BS, mask_BT.sum(axis=1), jnp.int32(T))
        return hidden_BTD[:, -1], state

    def decode(
        self, params: Params, tokens_B: Int[Array, " B"], state: DecodeState
    ) -> tuple[Float[Array, "B D"], DecodeState]:
        """Reads one more token a row; returns its hidden state and the new cache."""
        valid_BS = state.valid_BS.at[:, state.next_slot].set(1)
        hidden_BTD, _, cache = self.module().apply(
            {"params": params},
            tokens_B[:, None],
            state.next_position_B[:, None],
            (valid_BS > 0)[:, None, :],
            state.cache,
            state.next_slot,
        )
        state = DecodeState(
            cache, valid_BS, state.next_position_B + 1, state.next_slot + 1
        )
        return hidden_BTD[:, 0], state


@functools.partial(jax.jit, static_argnames="dtype")
def _cast_matrices(params: Params, dtype: str) -> Params:
    # Norm scales stay: they are used in float32.
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "scale" else x.astype(dtype), params
    )


@functools.cache
def _abstract_params(decoder: Decoder, dtype: str) -> Params:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    allowed = jax.ShapeDtypeStruct((1, 1, 1), bool)
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(decoder.module().init, key, tokens, tokens, allowed)
    specs = nn.get_partition_spec(boxed)["params"]

    def place(x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> Any:
        where = sharding(decoder.mesh, x.shape, *spec) if decoder.mesh else None
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=where)

    return jax.tree.map(place, nn.unbox(boxed)["params"], specs)


def causal(length: int) -> jax.Array:
    """Returns bool [1, T, S], true where a query may look."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def positions(mask_BT: jax.Array) -> jax.Array:
    """Returns each token's number among its row's tokens, from 0."""
    return jnp.maximum(jnp.cumsum(mask_BT, axis=1) - 1, 0)
