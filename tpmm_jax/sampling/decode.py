"""Sampling completions: one prefill per prompt, then a jitted while_loop.

A completion is a function of (key, prompt's number, sample's number) and the
model: the random key of each token is folded from those and the token's
position, so batch size, padding and mesh change nothing but rounding.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import pad_prompts
from tpmm_jax.data.table import round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import BATCH, TENSOR, constrain, fetch, fill, put_batch
from tpmm_jax.models import Decoder, DecodeState, from_mask
from tpmm_jax.sampling.layout import for_sampling
from tpmm_jax.sampling.rules import SamplingConfig, draw


@functools.partial(
    jax.jit,
    static_argnames=(
        *("decoder", "num_samples", "config", "eos_ids", "pad_id"),
        "num_ids",
    ),
)
def sample(
    decoder: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
    prompt_B: jax.Array,
    key: jax.Array,
    *,
    num_samples: int,
    config: SamplingConfig,
    eos_ids: tuple[int, ...],
    pad_id: int,
    num_ids: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws R completions of each left-padded prompt.

    Args:
      tokens_BT, mask_BT: int32 prompts, left-padded; mask 1 = token.
      prompt_B: int32, each prompt's number, which its random keys are folded from.
      key: typed PRNG key.
      eos_ids: ids that end a completion (kept in it).
      num_ids: how many ids, from 0, are drawn; None: all that the model embeds.

    Returns:
      tokens int32 [B, R, max_new_tokens], pad_id after the end, and lengths
      int32 [B, R], EOS included.
    """
    (B, _), R, new = tokens_BT.shape, num_samples, config.max_new_tokens
    keys = row_keys(key, prompt_B, jnp.arange(R)).reshape(B * R)
    prompts = from_mask(tokens_BT, mask_BT)
    hidden, state = decoder.prefill(params, prompts, new_tokens=new)
    hidden, state = _repeat(decoder, hidden, state, R)
    eos = jnp.asarray(eos_ids, jnp.int32)

    def unfinished(carry: tuple) -> jax.Array:
        step, _, _, ended, _ = carry
        return (step < new) & ~jnp.all(ended)

    def one_token(carry: tuple) -> tuple:
        step, hidden, state, ended, out = carry
        token = draw_next(decoder, params, hidden, keys, step, config, num_ids)
        token = jnp.where(ended, pad_id, token)
        out = out.at[:, step].set(token)
        ended |= jnp.isin(token, eos)
        hidden, state = decoder.decode(params, token, state)
        return step + 1, hidden, state, ended, out

    ended = jnp.zeros(B * R, bool)
    out = jnp.full((B * R, new), pad_id, jnp.int32)
    carry = (jnp.int32(0), hidden, state, ended, out)
    out = jax.lax.while_loop(unfinished, one_token, carry)[-1]
    is_eos = jnp.isin(out, eos)
    first = jnp.where(is_eos.any(-1), jnp.argmax(is_eos, -1) + 1, new)
    return out.reshape(B, R, new), first.astype(jnp.int32).reshape(B, R)


def row_keys(
    key: Key[Array, ""], prompt_B: Int[Array, " B"], sample_R: Int[Array, " R"]
) -> Key[Array, "B R"]:
    """Returns the key of each prompt's each sample, by their numbers."""
    prompt_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_B)
    of_samples = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(of_samples, (0, None))(prompt_keys_B, sample_R)


def draw_next(
    decoder: Decoder,
    params: Params,
    hidden_BD: Float[Array, "B D"],
    keys_B: Key[Array, " B"],
    step: jax.Array,
    config: SamplingConfig,
    num_ids: int | None,
) -> Int[Array, " B"]:
    """Returns each row's token number ``step``, drawn from its last hidden state."""
    logits_BV = decoder.logits(params, hidden_BD[:, None])[:, 0]
    V = logits_BV.shape[-1]
    if num_ids is not None and num_ids < V:
        logits_BV = jnp.where(jnp.arange(V) < num_ids, logits_BV, -jnp.inf)
    token_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
    return draw(logits_BV, token_keys_B, config)


def _repeat(
    decoder: Decoder, hidden: jax.Array, state: DecodeState, count: int
) -> tuple[jax.Array, DecodeState]:
    """Makes every row ``count`` adjacent rows: the samples share their prefill."""
    if count == 1:
        return hidden, state
    keys, values = (
        constrain(jnp.repeat(x, count, axis=1), decoder.mesh, None, BATCH, None, TENSOR)
        for x in state.cache
    )
    slots = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), state.slots)
    state = DecodeState((keys, values), slots, state.next_slot)
    return jnp.repeat(hidden, count, axis=0), state


def prompt_limit(decoder: Decoder, config: SamplingConfig) -> int:
    """Returns the tokens that a prompt may have beside max_new_tokens."""
    return decoder.config.max_positions - config.max_new_tokens


def check_prompt(
    place: int, ids: Sequence[int], decoder: Decoder, config: SamplingConfig
) -> None:
    """Raises BadInput for an empty prompt or one that leaves no room."""
    limit = prompt_limit(decoder, config)
    if not ids or len(ids) > limit:
        wanted = f"1 to {limit}" if limit > 0 else "fewer new tokens"
        raise BadInput(
            f"prompt {place} has {len(ids)} tokens; wanted {wanted} "
            f"({decoder.config.max_positions} positions of the model minus "
            f"{config.max_new_tokens} new tokens)"
        )


def generate_batches(
    decoder: Decoder,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    key: jax.Array,
    config: SamplingConfig,
    eos_ids: tuple[int, ...],
    num_samples: int = 1,
    batch_size: int = 32,
    numbers: Sequence[int] | None = None,
    start: int = 0,
    length: int | None = None,
    pad_id: int = 0,
    num_ids: int | None = None,
) -> Iterator[tuple[list[int], list[list[list[int]]]]]:
    """Yields (places in ``prompts``, their R completions), batch by batch.

    Args:
      prompts: token ids, at least one per prompt.
      numbers: each prompt's number for its random keys; its place by default.
      length: tokens to pad prompts to; by default the longest, rounded up.
      start: place of the first prompt to sample, a multiple of batch_size.
      num_ids: see ``sample``.

    Raises:
      BadInput: an empty prompt, or one that leaves no room for max_new_tokens.
    """
    limit = prompt_limit(decoder, config)
    for place, ids in enumerate(prompts):
        check_prompt(place, ids, decoder, config)
    numbers = range(len(prompts)) if numbers is None else numbers
    decoder, params = for_sampling(decoder, params)
    count = fill(decoder.mesh, min(batch_size, len(prompts)))
    for first in range(start, len(prompts), batch_size):
        places = list(range(first, min(first + batch_size, len(prompts))))
        rows = [prompts[i] for i in places]
        rows += [rows[-1]] * (count - len(rows))
        longest = max(len(row) for row in rows)
        width = length or round_up(longest, limit)
        tokens_BT, mask_BT = pad_prompts(rows, length=width, pad_id=pad_id)
        prompt_B = np.asarray([numbers[i] for i in places], np.int32)
        prompt_B = np.pad(prompt_B, (0, len(rows) - len(places)))
        batch = put_batch((tokens_BT, mask_BT, prompt_B), decoder.mesh)
        tokens, lengths = sample(
            decoder, params, *batch, key,
            num_samples=num_samples, config=config, eos_ids=eos_ids, pad_id=pad_id,
            num_ids=num_ids,
        )  # fmt: skip
        tokens, lengths = fetch(tokens), fetch(lengths)
        yield (
            places,
            [
                [tokens[i, r, : lengths[i, r]].tolist() for r in range(num_samples)]
                for i in range(len(places))
            ],
        )
