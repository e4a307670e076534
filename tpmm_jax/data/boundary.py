"""Token ids at the two ends of prompts and completions: BOS, the join, EOS, cuts."""

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data.templates import require_template
from tpmm_jax.errors import BadInput

Side: TypeAlias = Literal["left", "right"]
# Contexts in which a text is tokenised apart from its prompt; the first that does not
# merge with it serves.
_ANCHORS = ("\n", "a", ".", "0", "\u4e00")
_CHUNK = 2048


def require_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of EOS.

    Raises:
      BadInput: the tokenizer has none, so no completion could be taught to end.
    """
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "the tokenizer has no EOS token, so completions would never end; set "
            "eos_token in its tokenizer_config.json"
        )
    return tokenizer.eos_token_id


def limit_ids(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Tell a tokenizer for how many ids its model has an embedding.

    Tokenizers may hold more: all of Gemma 3's know an image token that the text models
    have no row for, and padding is often added without one. save_pretrained does not
    store it.
    """
    tokenizer._embeddings = embeddings


def known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of ids, from 0, that the tokenizer gives and its model embeds."""
    return min(len(tokenizer), getattr(tokenizer, "_embeddings", len(tokenizer)))


def without_embedding(tokenizer: PreTrainedTokenizerBase, *parts: list[int]) -> str:
    """What is wrong with ids of which the model does not embed one; else ""."""
    known = known_ids(tokenizer)
    if known == len(tokenizer):
        return ""
    first = next((i for ids in parts for i in ids if i >= known), None)
    if first is None:
        return ""
    return (
        f"the model has no embedding for {tokenizer.convert_ids_to_tokens(first)} "
        f"(id {first}; its embeddings end at {known - 1}): take it out of the text"
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill with: PAD, else EOS, else 0. No mask is ever derived from it."""
    known = known_ids(tokenizer)
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None and value < known:
            return value
    return 0


def check_limit(name: str, value: int) -> None:
    """Refuse a length that leaves no room for a token."""
    if value < 1:
        raise BadInput(f"{name} is {value}; wanted 1 token or more")


def text_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[list[int]]:
    """The ids of each text with no special token added."""
    ids: list[list[int]] = []
    fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    if fast is not None:
        fast.no_padding()
        fast.no_truncation()
    # Chunks bound the memory of what the tokenizer keeps a text.
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        if fast is not None:
            # Without offsets, and on all cores.
            found = fast.encode_batch_fast(chunk, add_special_tokens=False)
            ids.extend(encoding.ids for encoding in found)
        else:
            encoded = tokenizer(chunk, add_special_tokens=False, verbose=False)
            ids.extend(encoded["input_ids"])
    return ids


def leading_ids(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> list[int]:
    """What is put before a prompt's ids: BOS or nothing.

    With ``chat`` nothing, as the template writes BOS itself. Otherwise it is found by
    trying, since tokenizers say it in several ways that can disagree. What is put
    behind a text (EOS) is not wanted at the end of a prompt.

    Raises:
      BadInput: ``chat`` without a chat template, or no telling.
    """
    if chat:
        require_template(tokenizer)
        return []
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return full[:at]
    raise BadInput(
        f"the tokenizer reads 'a' as {plain} and, with special tokens, as {full}; "
        "wanted the same ids with BOS before or EOS behind them"
    )


def with_leading(ids: list[int], leading: list[int]) -> list[int]:
    """The ids behind the leading ones, which stand once even if the text has them."""
    return ids if ids[: len(leading)] == leading else leading + ids


def cut_prompt(
    ids: list[int], max_length: int, side: Side, bos: int | None
) -> list[int]:
    """At most max_length ids; a cut on the left keeps BOS and the end."""
    if len(ids) <= max_length:
        return ids
    if side == "right":
        return ids[:max_length]
    keep = [] if bos is None or ids[0] != bos or max_length < 2 else [bos]
    return keep + ids[len(ids) - max_length + len(keep) :]


def ids_apart(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[list[int]]:
    """The ids of texts as they stand inside a text, not at its beginning.

    SentencePiece-like tokenizers put a space before a text; read behind an anchor,
    a text does not gain one.
    """
    result: dict[str, list[int]] = {"": []}
    for anchor in _ANCHORS:
        left = [text for text in dict.fromkeys(texts) if text not in result]
        if not left:
            break
        front = text_ids(tokenizer, [anchor])[0]
        for text, ids in zip(left, text_ids(tokenizer, [anchor + t for t in left])):
            if ids[: len(front)] == front:
                result[text] = ids[len(front) :]
    left = [text for text in dict.fromkeys(texts) if text not in result]
    result |= dict(zip(left, text_ids(tokenizer, left)))
    return [result[text] for text in texts]


def without_bos(ids: list[int], bos: int | None, eos: int) -> list[int]:
    """The ids without BOS at their front; some data and templates write it there."""
    start = 0
    # Where BOS is EOS, one at the front may be all there is.
    while bos is not None and bos != eos and ids[start : start + 1] == [bos]:
        start += 1
    return ids[start:]


def end_completion(
    ids: list[int], eos: int, ends: Collection[int], max_length: int
) -> tuple[list[int], bool]:
    """The ids with their end once, or cut on the right and without it.

    Args:
      ids: of the completion's text.
      eos: what is put behind ids that have no end yet.
      ends: every id that ends a completion: EOS, an end of turn.
      max_length: the limit in tokens, the end included.

    Returns:
      The ids, and whether they were cut.
    """
    end = len(ids)
    while end and ids[end - 1] == eos:
        end -= 1
    ids = ids[:end] if end and ids[end - 1] in ends else [*ids[:end], eos]
    return ids[:max_length], len(ids) > max_length
