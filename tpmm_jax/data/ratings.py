"""Answers with a score each: rows of ratings, read as strictly as pairs are."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tpmm_jax.data._beside import (
    SPEAKING,
    Beside,
    missing_field,
    unpack,
    unread_columns,
)
from tpmm_jax.data._parts import PairFault, PreferencePair, join_explicit
from tpmm_jax.data._ratings import as_number
from tpmm_jax.data._row_shapes import LISTS
from tpmm_jax.data.messages import Content, Written, parse_content, without_ids
from tpmm_jax.data.problems import Problems, RowFault
from tpmm_jax.data.prompts import (
    PromptReading,
    count_rows,
    read_prompt_row,
    refuse_mixed,
)
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.sources import Row, read_rows
from tpmm_jax.errors import BadInput

# The columns of a part, where data.fields does not name one.
_TEXTS = ("text", "response", "completion", "answer", "content", "output")
NUMBERS = ("rating", "score", "overall_score", "reward")
_PROMPTS = ("prompt", *LISTS)


class Scored(NamedTuple):
    """An answer and its score.

    Attributes:
      prompt: "" of a text that stands alone.
      origin: where it stood; no two answers have the same.
      unit: answers of one prompt are compared within a unit, such as an iteration.
      held_out: whether its prompt trains nothing; None: nobody has decided.
      ended: whether it came to its end; one that was cut gets none.
    """

    prompt: Written
    answer: Written
    score: float
    origin: str
    unit: str = ""
    held_out: bool | None = None
    ended: bool = True

    def twice(self) -> PreferencePair:
        """The answer on both sides of a pair, as the encoder takes it."""
        sides = self.answer, self.answer
        return PreferencePair(self.prompt, *sides, self.origin, ended=self.ended)


class RatingSet(NamedTuple):
    """Rated answers, and what was read beside them; see ``pairs.PairSet``."""

    answers: list[Scored]
    counts: dict[str, int]
    beside: Beside
    unread: list[str]


def read_ratings(data: RewardDataConfig, problems: Problems) -> RatingSet:
    """Read rows of a text, or of a prompt and a response, with a rating.

    Args:
      data: its source is ``ratings``.
      problems: where malformed rows are noted; the caller settles them.
    """
    rows = _read_rows(data, problems)
    named = data.fields
    found_columns = {column for row in rows for column in row.data}
    text = named.get("text") or _first(_TEXTS, found_columns)
    rating = named.get("rating") or _first(NUMBERS, found_columns)
    beside = Beside((*data.ignore_columns, text, rating))
    parts = {part: named[part] for part in ("system", "history") if part in named}
    how = PromptReading(named.get("prompt", "prompt"), parts, data.parse_json, beside)
    answers = [
        one for row in rows if (one := _read_one(row, text, rating, how, problems))
    ]
    kinds = [(a.origin, "a prompt" if a.prompt else "no prompt") for a in answers]
    refuse_mixed(kinds, problems, field=how.field)
    beside.read.update((text, rating))
    beside.settle(problems, "always")
    bad = problems.origins()
    answers = [answer for answer in answers if answer.origin not in bad]
    counts = {
        "rows_read": count_rows(rows, problems),
        "blank_lines": problems.counts["blank_lines"],
        "malformed": len(problems.bad_rows()),
        "answers": len(answers),
    }
    unread = unread_columns(rows, beside, {text, rating})
    return RatingSet(answers, counts, beside, unread)


def _read_rows(data: RewardDataConfig, problems: Problems) -> list[Row]:
    columns = (*_TEXTS, *NUMBERS, *_PROMPTS, *SPEAKING, *data.fields.values())
    source = data.source
    if not data.columns:
        if is_text(source):
            raise BadInput(
                f"{source}: lines of text say no rating; name the cells that tabs "
                'separate with data.columns, such as ["id", "rating", "text"]'
            )
        return read_rows(source, split=data.split, columns=columns, problems=problems)
    if not is_text(source):
        raise BadInput(
            f"data.columns names the cells of a .txt file, but {source} is none; its "
            "columns have names, which data.fields takes"
        )
    rows = read_rows(source, split=data.split, problems=problems)
    kept = []
    for row in rows:
        cells = row.data["prompt"].split("\t")
        if len(cells) == len(data.columns):
            kept.append(Row(dict(zip(data.columns, cells)), row.origin))
            continue
        wanted = f"{len(data.columns)} ({', '.join(data.columns)})"
        text = f"{len(cells)} cells separated by tabs; wanted {wanted}"
        problems.add(row.origin, text)
    return kept


def is_text(source: str) -> bool:
    """Whether a source is a file of lines without columns."""
    name = source.lower()
    return name.removesuffix(".gz").removesuffix(".zst").endswith(".txt")


def _first(names: Sequence[str], columns: set[str]) -> str:
    return next((name for name in names if name in columns), names[0])


def _read_one(
    row: Row, text: str, rating: str, how: PromptReading, problems: Problems
) -> Scored | None:
    """A row's answer and its rating; None where problems were noted."""
    known = len(problems.found)
    for name in (text, rating):
        if name not in row.data:
            problems.add(row.origin, missing_field(name, row.data), field=name)
    if len(problems.found) > known:
        return None
    score = as_number(row.data[rating])
    if score is None:
        said = f"field {rating!r} is {row.data[rating]!r:.60}; wanted a finite number"
        problems.add(row.origin, said, field=rating)
    try:
        told = unpack(row, (), (text,), how.parse_json, how.beside)
        if told is None:
            return None
        answer, faults = parse_content(told.data[text], text)
        for fault in faults:
            problems.add(row.origin, fault, field=text)
        prompt = _prompt(row, how, problems)
        if score is None or faults or prompt is None:
            return None
        if not prompt:
            how.beside.look(row, {text, rating}, "", (answer,))
        pair = _joined(
            prompt, answer, row.origin, {"prompt": how.field, "chosen": text}
        )
    except RowFault as error:
        problems.add(row.origin, str(error), field=error.field)
        return None
    except PairFault as error:
        for column, said in dict(error.args).items():
            problems.add(row.origin, said, field=column)
        return None
    return Scored(pair.prompt, pair.chosen, score, row.origin)


def _prompt(row: Row, how: PromptReading, problems: Problems) -> Content | None:
    """The prompt of a row, "" where it has none; None where problems were noted."""
    named = how.field != "prompt"
    held = any(row.data.get(n) not in (None, "") for n in _PROMPTS)
    if not named and not held:
        return ""
    found = read_prompt_row(row, how, problems)
    if found is None:
        return None
    content = found[0].content
    if without_ids(content) is None:
        text = "holds token ids, which are another model's; wanted a text or messages"
        raise RowFault(f"field {how.field!r} {text}", how.field)
    return content


def _joined(
    prompt: Content, answer: Written, origin: str, names: Mapping[str, str]
) -> PreferencePair:
    """A prompt and its answer in one format; a conversation ends with its answer."""
    told = without_ids(prompt)
    if not told and not isinstance(answer, str):
        if len(answer) < 2:
            text = "one message alone; wanted a text, or a conversation with its answer"
            raise PairFault((names["chosen"], f"field {names['chosen']!r}: {text}"))
        told, answer = answer[:-1], answer[-1:]
    pair = PreferencePair(told or "", answer, answer, origin)
    if not told:
        return pair
    return join_explicit(pair, {**names, "rejected": names["chosen"]})[0]
