"""One completion, token by token as it is drawn, and its text piece by piece.

The draws are those of ``decode.sample``: the same keys, rules and forward passes. The
host takes part in every token, which a loop on the device does not need.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import pad_prompts
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.mesh import put_batch
from tpmm_jax.models import Decoder, DecodeState, from_mask
from tpmm_jax.sampling.decode import check_prompt, draw_next, prompt_limit, row_keys
from tpmm_jax.sampling.layout import for_sampling
from tpmm_jax.sampling.rules import SamplingConfig

# Prompts are padded to this times a power of two: a conversation that grows to N
# tokens compiles log2(N) programs, not one per turn.
SHORTEST = 32
# A "word" this long is a link or a script without spaces: shown as it comes.
LONGEST_WORD = 24
# What a decoder puts in the place of bytes that are not a character, or not yet.
REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def padded_length(length: int, limit: int) -> int:
    """Returns the least SHORTEST * 2^n that holds ``length``, at most ``limit``."""
    width = SHORTEST
    while width < length:
        width *= 2
    return min(width, limit)


@functools.partial(jax.jit, static_argnames=("decoder", "new_tokens"))
def start(
    decoder: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    new_tokens: int,
) -> tuple[jax.Array, DecodeState]:
    """Reads left-padded prompts; returns ``Decoder.prefill``'s result."""
    return decoder.prefill(params, from_mask(tokens_BT, mask_BT), new_tokens=new_tokens)


# The cache is donated, so that a token is written into it and not into a copy.
@functools.partial(
    jax.jit,
    static_argnames=("decoder", "config", "num_ids"),
    donate_argnames=("state",),
)
def step(
    decoder: Decoder,
    params: Params,
    hidden_BD: jax.Array,
    state: DecodeState,
    keys_B: jax.Array,
    number: jax.Array,
    *,
    config: SamplingConfig,
    num_ids: int | None = None,
) -> tuple[jax.Array, jax.Array, DecodeState]:
    """Draws token ``number`` of each row and reads it: (token, hidden, state)."""
    token_B = draw_next(decoder, params, hidden_BD, keys_B, number, config, num_ids)
    hidden_BD, state = decoder.decode(params, token_B, state)
    return token_B, hidden_BD, state


def stream_tokens(
    decoder: Decoder,
    params: Params,
    prompt: Sequence[int],
    *,
    key: jax.Array,
    config: SamplingConfig,
    eos_ids: tuple[int, ...],
    pad_id: int = 0,
    number: int = 0,
    sample: int = 0,
    num_ids: int | None = None,
) -> Iterator[int]:
    """Yields the ids of one completion, EOS included, as they are drawn.

    Args:
      prompt: token ids, one or more.
      key: typed PRNG key.
      number, sample: of the prompt and of its completion, as ``sample`` numbers them:
        the same (key, number, sample) is the same completion.
      num_ids: see ``decode.sample``.

    Raises:
      BadInput: an empty prompt, or one that leaves no room for max_new_tokens.
    """
    check_prompt(number, prompt, decoder, config)
    width = padded_length(len(prompt), prompt_limit(decoder, config))
    decoder, params = for_sampling(decoder, params)
    batch = put_batch(pad_prompts([prompt], length=width, pad_id=pad_id), decoder.mesh)
    keys_B = row_keys(key, jnp.asarray([number]), jnp.asarray([sample]))[:, 0]
    new = config.max_new_tokens
    hidden_BD, state = start(decoder, params, *batch, new_tokens=new)
    for place in range(new):
        token_B, hidden_BD, state = step(
            decoder, params, hidden_BD, state, keys_B, np.int32(place),
            config=config, num_ids=num_ids,
        )  # fmt: skip
        token = int(np.asarray(token_B)[0])
        yield token
        if token in eos_ids:
            return


def text_pieces(
    codec: TextCodec, prompt_ids: Sequence[int], tokens: Iterable[int]
) -> Iterator[str]:
    """Yields the text of a completion as far as later tokens cannot change it.

    Held back are bytes that do not make a character yet, and the last word. Joined,
    the pieces are ``codec.completion_texts`` of all tokens.
    """
    ids: list[int] = []
    said, text = "", ""
    for token in tokens:
        ids.append(token)
        if _leaves_open(codec, token):
            continue
        text = codec.completion_texts(prompt_ids, [ids])[0]
        end = settled(text)
        if end > len(said) and text.startswith(said):
            yield text[len(said) : end]
            said = text[:end]
    text = codec.completion_texts(prompt_ids, [ids])[0]
    if text.startswith(said) and len(text) > len(said):
        yield text[len(said) :]


def _leaves_open(codec: TextCodec, token: int) -> bool:
    """Whether a later token may change the text of this one.

    SentencePiece writes letters that it lacks as byte tokens; a run of them is text if
    all of it is, and else replacement characters, from its first byte on.
    """
    if token in codec.tokenizer.all_special_ids:
        return True
    piece = codec.tokenizer.convert_ids_to_tokens(token)
    return piece is not None and BYTE_TOKEN.fullmatch(piece) is not None


def settled(text: str) -> int:
    """Returns how many characters of a growing text may be shown."""
    end = len(text.rstrip(REPLACEMENT))
    word = end
    while word and not text[word - 1].isspace():
        word -= 1
        # Scripts without spaces have no word to wait for.
        if end - word > LONGEST_WORD or (
            unicodedata.east_asian_width(text[word]) in "WF"
        ):
            return end
    # The space before a word stays with it: some decoders take it back before a mark.
    while word and text[word - 1] == " ":
        word -= 1
    return word
