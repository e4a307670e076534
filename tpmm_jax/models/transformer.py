"""The decoder: embedding, a scan over layers, final norm; with or without a cache."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.mesh import BATCH, FSDP, TENSOR, constrain
from tpmm_jax.models.config import ModelConfig
from tpmm_jax.models.experts import Aux, by_layer, declare_weights
from tpmm_jax.models.feed_forward import FEED_FORWARD
from tpmm_jax.models.layers import (
    Attention,
    Cache,
    PerLayer,
    RMSNorm,
    per_layer,
    scaled_normal,
)
from tpmm_jax.models.lora import drop
from tpmm_jax.models.noise import ATTENTION, MLP, ROUTER, NoiseConfig, at
from tpmm_jax.models.sequences import Sequences


class Block(nn.Module):
    """One layer, in the form that ``nn.scan`` wants."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None
    noise: NoiseConfig
    flash: bool

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Cache | None],
        layer: PerLayer,
        queries: Sequences,
        keys: Sequences,
        slot: jax.Array | None,
        keys_B: jax.Array | None,
    ) -> tuple[tuple[jax.Array, Cache | None], Aux]:
        x_BTD, cache = carry
        c = self.config
        h = self._norm("attention_norm", x_BTD)
        h, cache = Attention(c, self.dtype, self.mesh, self.flash, name="attention")(
            h, queries, keys, cache, slot, layer
        )
        if c.post_norms:
            h = self._norm("attention_post_norm", h)
        x_BTD = x_BTD + self._drop(h, keys_B, layer, ATTENTION)
        h = self._norm("mlp_norm", x_BTD)
        feed_forward = FEED_FORWARD[c.feed_forward]
        noise = None
        if keys_B is not None and self.noise.jitter:
            noise = at(keys_B, layer.number, ROUTER), self.noise.jitter
        h, aux = feed_forward(c, self.dtype, self.mesh, name="mlp")(
            h, queries.segments_BT > 0, layer, noise
        )
        if c.post_norms:
            h = self._norm("mlp_post_norm", h)
        x_BTD = x_BTD + self._drop(h, keys_B, layer, MLP)
        return (constrain(x_BTD, self.mesh, BATCH), cache), aux

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return RMSNorm(self.config.norm_eps, self.config.norm_offset, name=name)(x)

    def _drop(
        self, x: jax.Array, keys_B: jax.Array | None, layer: PerLayer, place: int
    ) -> jax.Array:
        if keys_B is None or not self.noise.dropout:
            return x
        keep = jnp.float32(1.0 - self.noise.dropout)
        return drop(x, at(keys_B, layer.number, place), keep)


@jax.custom_vjp
def look_up(
    embedding_VD: jax.Array, tokens_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens' rows, and the embedding itself for a tied head to use.

    Passing a tied head's use through here lets the backward pass add the rows'
    gradient into the head's: one [V, D] buffer instead of three.
    """
    return embedding_VD.at[tokens_BT].get(mode="clip"), embedding_VD


def _look_up_forward(embedding_VD: jax.Array, tokens_BT: jax.Array) -> Any:
    return look_up(embedding_VD, tokens_BT), tokens_BT


def _look_up_backward(tokens_BT: jax.Array, gradients: Any) -> Any:
    rows_BTD, embedding_VD = gradients
    return embedding_VD.at[tokens_BT].add(rows_BTD.astype(embedding_VD.dtype)), None


look_up.defvjp(_look_up_forward, _look_up_backward)


class Forward(NamedTuple):
    """What a forward pass returns.

    Attributes:
      hidden: final hidden states [B, T, D], after the last norm, in compute_dtype.
      head: output embedding [V, D], a reward model's head [D, 1]. Where embeddings are
        tied, a loss that takes it from here halves the memory of their gradient.
      aux: what each layer reports beside its output, by name, [L, ...] each.
    """

    hidden: jax.Array
    head: jax.Array
    aux: Aux


class Transformer(nn.Module):
    """Sequences to final hidden states."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None
    remat: bool
    noise: NoiseConfig
    flash: bool

    @nn.compact
    def __call__(
        self,
        sequences: Sequences,
        slots: Sequences | None = None,
        cache: Cache | None = None,
        slot: jax.Array | None = None,
        keys_B: jax.Array | None = None,
    ) -> tuple[Forward, Cache | None]:
        """Runs all layers; returns what they make of the tokens, and the new cache.

        Args:
          slots: what the cache holds, these tokens included; None: no cache.
          slot: where in the cache these tokens begin.
          keys_B: of each row's noise, as data; None: no noise.
        """
        c = self.config
        V, D = c.vocab_size, c.width
        embedding_VD = self.param("embedding", scaled_normal(D, (TENSOR, FSDP)), (V, D))
        x_BTD, head_VD = look_up(embedding_VD, sequences.tokens_BT)
        if c.output == "reward":
            head_VD = self.param("score", scaled_normal(D + 1, (FSDP, None)), (D, 1))
        elif not c.tie_embeddings:
            head_VD = self.param("head", scaled_normal(D, (TENSOR, FSDP)), (V, D))
        x_BTD = x_BTD.astype(self.dtype)
        if c.embed_scale:
            x_BTD = x_BTD * jnp.asarray(D**0.5, self.dtype)
        x_BTD = constrain(x_BTD, self.mesh, BATCH)

        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, *[nn.broadcast] * 4),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: None},
        )(c, self.dtype, self.mesh, self.noise, self.flash, name="layers")
        keys = sequences if slots is None else slots
        told = per_layer(c)
        if c.experts is not None:
            told = by_layer(told, declare_weights(self, c), c)
        (x_BTD, cache), aux = layers(
            (x_BTD, cache), told, sequences, keys, slot, keys_B
        )
        x_BTD = RMSNorm(c.norm_eps, c.norm_offset, name="final_norm")(x_BTD)
        return Forward(x_BTD, head_VD, aux), cache
