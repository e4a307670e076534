"""Token ids at the two ends of prompts and completions: BOS, the join, EOS, cuts."""

from collections.abc import Sequence
from typing import NamedTuple

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


class Ended(NamedTuple):
    """A completion's ids up to its end.

    Attributes:
      ids: at most max_completion_length of them, the end included.
      cut: whether they were more.
      trailing: whether white space or a further end stood behind the end.
      fault: what is wrong where text stands there; else "".
    """

    ids: list[int]
    cut: bool
    trailing: bool
    fault: str


def end_completion(codec: TextCodec, ids: list[int], *, turns: int = 1) -> Ended:
    """The ids of a completion up to its end, which is added where there is none.

    The end is the first id at which sampling stops: EOS or an end of turn. White space
    and further ends behind it are left out: pre-rendered answers end with a line break,
    and some templates write EOS behind the last end of turn.

    Args:
      turns: of the completion; between them an end is in its place.
    """
    limit, at, said = codec.max_completion_length, len(ids), ""
    for place in (i for i, token in enumerate(ids) if token in codec.eos_ids):
        said = _text_in(codec, ids[place + 1 :])
        if turns == 1 or not said:
            at = place
            break
    whole = ids[: at + 1] if at < len(ids) else [*ids, codec.require_eos()]
    fault = end_fault(codec, whole[-1], said) if at < len(ids) and said else ""
    trailing = len(whole) < len(ids)
    return Ended(whole[:limit], len(whole) > limit, trailing, fault)


def without_end(codec: TextCodec, ids: list[int]) -> list[int]:
    """The ids of an answer that was cut: without the ends behind it."""
    size = len(ids)
    while size and ids[size - 1] in codec.eos_ids:
        size -= 1
    return ids[:size]


def typed_end(codec: TextCodec, contents: Sequence[str]) -> str:
    """What is wrong with messages of which one goes on behind an end; else ""."""
    for number, ids in enumerate(text_ids(codec.tokenizer, contents), 1):
        first = next((i for i, token in enumerate(ids) if token in codec.eos_ids), None)
        if first is None:
            continue
        said = _text_in(codec, ids[first + 1 :])
        if said or number < len(contents):
            return end_fault(codec, ids[first], said or "the next message")
    return ""


def end_fault(codec: TextCodec, end: int, said: str) -> str:
    """What is wrong with a completion in which text follows an end."""
    return (
        f"{said[:40]!r} follows {codec.tokenizer.convert_ids_to_tokens(end)}, at which "
        "sampling ends an answer; remove what follows it or the end itself, and give "
        "answers of several turns as messages"
    )


def _text_in(codec: TextCodec, ids: Sequence[int]) -> str:
    """The text of ids without ends and the white space around it."""
    said = [token for token in ids if token not in codec.eos_ids]
    if not said:
        return ""
    return codec.tokenizer.decode(said, skip_special_tokens=False).strip()
