"""A source of pairs or prompts, read and encoded: what a run takes, a check reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tpmm_jax.data._beside import Beside
from tpmm_jax.data._pair_tokens import count_table, encode_pairs
from tpmm_jax.data.checks import length_counts, length_remark
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Content, continues, without_ids
from tpmm_jax.data.pairs import PreferencePair, read_pair_set
from tpmm_jax.data.problems import Problems, listing
from tpmm_jax.data.prompt_tokens import EncodedPrompt, encode_prompts
from tpmm_jax.data.prompts import Prompt, read_prompt_set
from tpmm_jax.data.records import PairRow

AS_LABELLED = "trained on as labelled"
# Columns that one line names.
_NAMED = 20


@dataclass(frozen=True)
class Prepared:
    """A source that was read and, with a codec, encoded.

    Attributes:
      pairs: those that can be read; some of them may not be encoded.
      rows: those that train, in order.
      counts: of the reader and of the encoder; see ``_pair_tokens.count_table``.
      problems: what is wrong; ``settle`` refuses it, or counts what is left out.
      chat: whether the rows were written with the chat template.
      unread: the columns that no row was made of.
    """

    pairs: list[PreferencePair]
    rows: list[PairRow]
    counts: dict[str, int]
    problems: Problems = field(repr=False)
    chat: bool
    unread: list[str]


def prepare_pairs(
    source: str,
    data: DataConfig,
    codec: TextCodec | None,
    *,
    auto_chat: bool = False,
    margins: bool = False,
    bare: bool = False,
) -> Prepared:
    """Read and encode preference pairs as ``data`` says.

    Args:
      source: see ``sources.read_rows``.
      data: columns, and what becomes of bad rows.
      codec: made of the same ``data``; None: the pairs are read only.
      auto_chat: switch the chat template on where the rows are messages.
      margins: they are used, so that one which is missing or cannot be read is a fault
        of its row.
      bare: two texts without a common beginning are a pair without a prompt.

    Raises:
      BadInput: no source of this name or kind. What is wrong with rows is in
        ``problems``.
    """
    problems = Problems(source, on_bad_rows=data.on_bad_rows)
    found = read_pair_set(
        source,
        problems,
        split=data.split,
        fields=data.fields,
        implicit_prompt=data.implicit_prompt,
        parse_json=data.parse_json,
        ignore_columns=data.ignore_columns,
        scored_pairs=data.scored_pairs,
        margins=margins,
        bare=bare,
    )
    counts, rows, unread = dict(found.counts), list[PairRow](), found.unread
    if codec is not None and auto_chat:
        codec = _suited(codec, [pair.prompt for pair in found.pairs])
    chat = _settle(found.beside, problems, data, codec, auto_chat)
    if codec is None or chat is None:
        return Prepared(found.pairs, rows, counts, problems, bool(chat), unread)
    before = len(problems.origins())
    rows, encoded = encode_pairs(codec, found.pairs, problems, data.fields)
    counts |= encoded
    counts["not_encoded"] = len(problems.origins()) - before
    return Prepared(found.pairs, rows, counts, problems, codec.chat, unread)


@dataclass(frozen=True)
class PreparedPrompts:
    """A source of prompts that was read and, with a codec, encoded.

    Attributes:
      prompts: those that can be read; some of them may not be encoded.
      usable: those that can be sampled from, in order; without a codec all.
      encoded: the token ids of these; empty without a codec.
      counts: rows_read, malformed, blank_lines, prompts, prompt_truncated, continued
        (answers go on with the prompt's last message), not_encoded.
      problems, chat, unread: see ``Prepared``.
    """

    prompts: list[Prompt]
    usable: list[Prompt]
    encoded: list[EncodedPrompt] = field(repr=False)
    counts: dict[str, int]
    problems: Problems = field(repr=False)
    chat: bool
    unread: list[str]


def prepare_prompts(
    source: str,
    data: DataConfig,
    codec: TextCodec | None,
    *,
    auto_chat: bool = False,
    keep: Mapping[str, str] | None = None,
) -> PreparedPrompts:
    """Read and encode prompts as ``data`` says; arguments as of ``prepare_pairs``.

    Args:
      keep: columns whose values every prompt keeps.
    """
    problems = Problems(source, on_bad_rows=data.on_bad_rows)
    prompts, rows_read, beside, unread = read_prompt_set(
        source,
        problems,
        field=data.prompt_field,
        split=data.split,
        fields=data.fields,
        parse_json=data.parse_json,
        ignore_columns=data.ignore_columns,
        keep=keep,
    )
    counts = {"rows_read": rows_read, "malformed": len(problems.bad_rows())}
    counts["blank_lines"] = problems.counts["blank_lines"]
    counts["prompts"] = len(prompts)
    if codec is not None and auto_chat:
        codec = _suited(codec, [prompt.content for prompt in prompts])
    chat = _settle(beside, problems, data, codec, auto_chat)
    if codec is None or chat is None:
        whole = bool(chat)
        return PreparedPrompts(prompts, prompts, [], counts, problems, whole, unread)
    encoded = encode_prompts(codec, prompts, problems)
    bad = problems.origins()
    usable = [prompt for prompt in prompts if prompt.origin not in bad]
    counts["continued"] = sum(continues(prompt.content) for prompt in usable)
    counts["prompt_truncated"] = sum(prompt.truncated for prompt in encoded)
    counts["not_encoded"] = len(prompts) - len(usable)
    chat = codec.chat
    return PreparedPrompts(prompts, usable, encoded, counts, problems, chat, unread)


def _suited(codec: TextCodec, contents: Sequence[Content]) -> TextCodec:
    """With the chat template for messages, if the tokenizer can write them."""
    has = getattr(codec.tokenizer, "chat_template", None) is not None
    messages = any(isinstance(without_ids(content), tuple) for content in contents)
    return replace(codec, chat=codec.chat or (has and messages))


def _settle(
    beside: Beside,
    problems: Problems,
    data: DataConfig,
    codec: TextCodec | None,
    auto_chat: bool,
) -> bool | None:
    """Refuse what cannot be honoured with the chat template, or without it.

    Returns:
      Whether the template is used; None where the source is refused for it, or where
      it is not known.
    """
    if codec is None and auto_chat:
        return None
    chat = data.chat if codec is None else codec.chat
    return None if beside.settle(problems, "chat" if chat else "plain") else chat


def load_rows(
    source: str,
    data: DataConfig,
    codec: TextCodec,
    *,
    note: Callable[[str], None],
    warn: Callable[[str], None],
    margins: bool = False,
) -> list[PairRow]:
    """Returns a preference set's pairs as token ids.

    Args:
      source, data, codec, margins: see ``prepare_pairs``.
      note, warn: called with the counts of what was read, cut and dropped, and with
        the rows that were left out.

    Raises:
      BadInput: as that does, or rows that are to be refused, all of them listed.
    """
    found = prepare_pairs(source, data, codec, margins=margins)
    if found.problems.settle():
        warn(found.problems.left_out())
    for what, count in count_table(found.counts):
        if count:
            note(f"{count:>8,} {what}")
    if found.unread:
        note(unread_text(source, found.unread))
    lengths = ((len(row.chosen_ids), len(row.rejected_ids)) for row in found.rows)
    if remark := length_remark(length_counts(lengths), "tokens"):
        note(f"{source}: {remark}")
    # What margins are used for decides what becomes of these pairs.
    then = "used as pairing.margins says" if margins else AS_LABELLED
    if remarks := remark_text(source, found.problems, then):
        warn(remarks)
    if text := margin_text(source, found.problems):
        note(text)
    return found.rows


def remark_text(source: str, problems: Problems, then: str = AS_LABELLED) -> str:
    """The pairs whose ratings contradict their labels, named; "" if there are none.

    Args:
      then: what becomes of them.
    """
    if not problems.remarks:
        return ""
    pairs = _few(len(problems.remarks), "pair")
    return (
        f"{source}: ratings prefer rejected in {pairs}, {then}\n"
        f"{listing(problems.remarks)}"
    )


def margin_text(source: str, problems: Problems) -> str:
    """The margins that could not be used, had anything read them; "" if none."""
    if not problems.margins:
        return ""
    pairs = _few(len(problems.margins), "pair")
    return (
        f"{source}: margins of {pairs} cannot be used; nothing reads margins here\n"
        f"{listing(problems.margins, limit=3)}"
    )


def unread_text(source: str, columns: Sequence[str]) -> str:
    """The columns that a source has and no row is made of, as a line."""
    more = f" and {len(columns) - _NAMED} more" if columns[_NAMED:] else ""
    return f"{source}: not read: {', '.join(columns[:_NAMED])}{more}"


def _few(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def group_by_prompt(rows: Sequence[PairRow]) -> list[list[PairRow]]:
    """Returns the rows of each prompt, in the order of their first."""
    groups: dict[tuple[int, ...], list[PairRow]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prompt_ids), []).append(row)
    return list(groups.values())
