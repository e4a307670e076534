"""A row's tokens as a person can read them, with the masks that training uses."""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias

from transformers.convert_slow_tokenizer import bytes_to_unicode

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.data.batches import collate
from tpmm_jax.data.records import PairRow

Part: TypeAlias = Literal["prompt", "completion", "padding"]
# Positions of padding that are shown, to show that the masks leave them out.
_PADDING = 2


class ShownToken(NamedTuple):
    """A token's text and the part of the row that its masks say it belongs to."""

    text: str
    part: Part


def view_row(tokenizer: Any, row: PairRow) -> dict[str, list[ShownToken]]:
    """The tokens of chosen and rejected, each with its prompt, from the row's arrays.

    The parts are read from ``collate``'s masks, not from the row, so that what is
    printed is what training sees.
    """
    longest = max(len(row.chosen_ids), len(row.rejected_ids))
    length = len(row.prompt_ids) + longest + _PADDING
    batch = collate([row], length=length, pad_id=0)
    view = {}
    for name, n in (("chosen", CHOSEN), ("rejected", REJECTED)):
        texts = token_texts(tokenizer, batch["tokens_BNT"][0, n].tolist())
        masks = zip(batch["mask_BNT"][0, n], batch["completion_mask_BNT"][0, n])
        view[name] = [
            ShownToken(text, "completion" if ours else "prompt")
            if real
            else ShownToken("·", "padding")
            for text, (real, ours) in zip(texts, masks)
        ]
    return view


def mark(token: ShownToken) -> str:
    """A token's text, in [brackets] under the completion mask."""
    return f"[{token.text}]" if token.part == "completion" else token.text


def count_text(tokens: list[ShownToken]) -> str:
    """How many tokens there are of each part, in words."""
    parts = [token.part for token in tokens]
    prompt, ours = parts.count("prompt"), parts.count("completion")
    return f"{prompt} prompt + {ours} completion tokens"


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token: ▁ for a space, escapes for breaks and single bytes."""
    tokens = [token or "?" for token in tokenizer.convert_ids_to_tokens(ids)]
    whole = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    byte_level = "ByteLevel" in str(getattr(fast, "decoder", None))
    texts = [
        _from_bytes(token) if byte_level and token not in whole else token
        for token in tokens
    ]
    # Line breaks and controls as escapes, so that a row stays on its line.
    return [
        "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.replace(" ", "▁"))
        for text in texts
    ]


def _from_bytes(token: str) -> str:
    """The text that a byte-level token's letters stand for."""
    table = _byte_letters()
    if not all(letter in table for letter in token):
        return token
    raw = bytes(table[letter] for letter in token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in raw)


@functools.cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones are themselves, others from U+0100."""
    return {letter: byte for byte, letter in bytes_to_unicode().items()}
