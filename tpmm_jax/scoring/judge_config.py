"""How a model is asked which of two answers is better, and how its reply is read."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tpmm_jax.errors import BadInput
from tpmm_jax.sampling import SamplingConfig

# The prefix of names that are models: no module may have it.
JUDGE = "judge:"
# The question that is asked where none is given.
TEMPLATE = """\
Which of two answers to a prompt is better?

Prompt:
{prompt}

Answer A:
{first}

Answer B:
{second}

Reply with one word: A if answer A is better, B if answer B is better, tie if they are \
equally good.
Verdict:"""
PLACES = ("prompt", "first", "second")
_PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How the models that are named judge:SOURCE are asked and read.

    They reply greedily, so that the same texts get the same verdict. A verdict that is
    letters and digits alone is a whole word; any other is a regular expression.

    Attributes:
      template: the question, with {prompt}, {first} and {second} once or more; None: a
        short one that asks for A, B or tie.
      template_file: a UTF-8 file that holds it; a line end at its end is left out.
      first, second: verdicts for the first and the second answer.
      tie: verdicts for neither; may be empty.
      max_new_tokens: that a reply may have.
      chat: ask in a user's message of the judge's own chat template; None: where its
        tokenizer has one.
      batch_size: questions that are asked at once.
      dtype: of parameters and computation.
      revision: of a hub id.
      base: the model under a PEFT adapter, if not the one that it names.
    """

    template: str | None = None
    template_file: str | None = None
    first: Sequence[str] = ("A",)
    second: Sequence[str] = ("B",)
    tie: Sequence[str] = (r"\b[Aa] tie\b", "tie", "Tie", "TIE")
    max_new_tokens: int = 8
    chat: bool | None = None
    batch_size: int = 16
    dtype: Literal["float32", "bfloat16"] = "float32"
    revision: str | None = None
    base: str | None = None

    @property
    def sampling(self) -> SamplingConfig:
        """How a reply is drawn."""
        return SamplingConfig(max_new_tokens=self.max_new_tokens, temperature=0.0)

    def validate(self, names: Iterable[str | None]) -> None:
        """Raises BadInput for a value out of range, or that no judge reads.

        Args:
          names: of all scorers and judges.
        """
        if not any(name and name.startswith(JUDGE) for name in names):
            if changed := _changed(self):
                raise BadInput(
                    f"judge.{changed[0]} is set, but no judge is a model, so nothing "
                    'would read it; name one, "judge:SOURCE", or leave it unset'
                )
            return
        for name in ("max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise BadInput(f"judge.{name} is {value}; use at least 1")
        read_template(self)
        _check_verdicts(self)


def read_template(config: JudgeConfig) -> str:
    """Returns the question with its places.

    Raises:
      BadInput: two are given, the file cannot be read, or a place is missing.
    """
    where, text = "judge.template", config.template
    if config.template_file is not None:
        if text is not None:
            raise BadInput(
                "judge.template and judge.template_file are both set; give one of them"
            )
        where = f"judge.template_file = {config.template_file}"
        try:
            text = pathlib.Path(config.template_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{where} cannot be read: {error}") from None
        # Editors end a file with a line end, behind which a model would begin anew.
        text = text.removesuffix("\n")
    text = TEMPLATE if text is None else text
    if missing := [name for name in PLACES if name not in _PLACE.findall(text)]:
        raise BadInput(
            f"{where} lacks {{{missing[0]}}}; wanted a text with "
            + ", ".join(f"{{{name}}}" for name in PLACES)
        )
    return text


def ask(template: str, prompt: str, first: str, second: str) -> str:
    """Returns the question about two answers; what these hold in braces is text.

    >>> ask("{prompt}: {first} or {second}?", "Which", "{second}", "b")
    'Which: {second} or b?'
    """
    texts = dict(zip(PLACES, (prompt, first, second)))
    return _PLACE.sub(lambda match: texts[match[1]], template)


def read_verdict(config: JudgeConfig, reply: str) -> float | None:
    """Returns the share for the first answer; None where the reply cannot be read.

    The verdict is the one before which no word stands, else the only one that occurs. A
    verdict within a longer one is part of it. White space around a reply is left out.

    >>> [read_verdict(JudgeConfig(), x) for x in ("B", "**A** beats B", "A tie.")]
    [0.0, 1.0, 0.5]
    >>> read_verdict(JudgeConfig(), "Both A and B are good") is None
    True
    """
    reply = reply.strip()
    shares = {1.0: config.first, 0.0: config.second, 0.5: config.tie}
    spans = [
        (*match.span(), share)
        for share, verdicts in shares.items()
        for verdict in verdicts
        for match in pattern(verdict).finditer(reply)
    ]
    # What stands before the first of each: the last one in this order.
    found = {
        share: reply[:start]
        for start, end, share in sorted(spans, reverse=True)
        if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
    }
    leading = [share for share, before in found.items() if not re.search(r"\w", before)]
    for some in (leading, list(found)):
        if len(some) == 1:
            return some[0]
    return None


def pattern(verdict: str) -> re.Pattern[str]:
    """Returns what finds a verdict; see ``JudgeConfig``."""
    is_word = re.fullmatch(r"\w+", verdict)
    return re.compile(rf"(?<!\w){verdict}(?!\w)" if is_word else verdict)


def _changed(config: JudgeConfig) -> list[str]:
    """Returns the fields that are not at their defaults."""
    return [
        f.name
        for f in dataclasses.fields(config)
        if _plain(getattr(config, f.name)) != _plain(f.default)
    ]


def _plain(value: object) -> object:
    # A stored config has lists where the defaults are tuples.
    return list(value) if isinstance(value, tuple) else value


def _check_verdicts(config: JudgeConfig) -> None:
    known: dict[str, str] = {}
    lists = {"first": config.first, "second": config.second, "tie": config.tie}
    for name, verdicts in lists.items():
        if not verdicts and name != "tie":
            raise BadInput(f"judge.{name} is empty; give a verdict, such as A")
        for verdict in verdicts:
            try:
                matches_all = pattern(verdict).search("") is not None
            except re.error as error:
                raise BadInput(
                    f"judge.{name}: {verdict!r} is no regular expression ({error})"
                ) from None
            if matches_all:
                raise BadInput(
                    f"judge.{name}: {verdict!r} would be found in an empty reply; give "
                    "what stands in a reply"
                )
            if known.setdefault(verdict, name) != name:
                raise BadInput(
                    f"{verdict!r} is in judge.{known[verdict]} and in judge.{name}; a "
                    "verdict means one thing"
                )
