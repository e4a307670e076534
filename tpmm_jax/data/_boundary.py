"""Token ids at the two ends of prompts and completions: BOS, the join, EOS, cuts."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data._templates import require_template
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.errors import BadInput

# Contexts in which a text is tokenised apart from its prompt; the first that does not
# merge with it serves.
_ANCHORS = ("\n", "a", ".", "0", "\u4e00")
_CHUNK = 2048


def text_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[list[int]]:
    """The ids of each text with no special token added."""
    ids: list[list[int]] = []
    fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    if fast is not None:
        fast.no_padding()
        fast.no_truncation()
    # Chunks bound the memory of what the tokenizer keeps per text.
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


def leading_ids(codec: TextCodec) -> list[int]:
    """What is put before a prompt's ids: BOS or nothing.

    With a chat template nothing, as it writes BOS itself. Otherwise it is found by
    trying, since tokenizers say it in several ways that can disagree. What is put
    behind a text (EOS) does not belong at the end of a prompt.

    Raises:
      BadInput: no chat template, or a tokenizer that gives no sign of its BOS.
    """
    tokenizer = codec.tokenizer
    if codec.chat:
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


def cut_prompt(codec: TextCodec, ids: list[int]) -> list[int]:
    """A prompt's ids within the limit; a cut on the left keeps BOS and the end."""
    limit, bos = codec.max_prompt_length, codec.bos_id
    if len(ids) <= limit:
        return ids
    if codec.truncate_prompt == "right":
        return ids[:limit]
    keep = [] if bos is None or ids[0] != bos or limit < 2 else [bos]
    return keep + ids[len(ids) - limit + len(keep) :]


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


def without_bos(codec: TextCodec, ids: list[int]) -> list[int]:
    """The ids without BOS at their front; some data and templates write it there."""
    bos, start = codec.bos_id, 0
    # Where BOS is EOS, one at the front may be all there is.
    if bos is None or bos == codec.eos_id:
        return ids
    while ids[start : start + 1] == [bos]:
        start += 1
    return ids[start:]


def end_completion(codec: TextCodec, ids: list[int]) -> tuple[list[int], bool]:
    """The ids of a completion's text with their end once, or cut and without it.

    Behind an id that ends a completion, such as an end of turn at which sampling
    stops, no EOS is put.

    Returns:
      The ids, at most max_completion_length with their end, and whether they were cut.
    """
    eos, limit, end = codec.require_eos(), codec.max_completion_length, len(ids)
    while end and ids[end - 1] == eos:
        end -= 1
    ended = end and ids[end - 1] in codec.eos_ids
    ids = ids[:end] if ended else [*ids[:end], eos]
    return ids[:limit], len(ids) > limit
