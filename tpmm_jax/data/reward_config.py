"""What a reward model learns from: pairs, ratings, or the answers of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from tpmm_jax.data.config import EARLIER, DataConfig, check_fields
from tpmm_jax.errors import BadInput, nearest
from tpmm_jax.stopping import TIMEOUT

Kind: TypeAlias = Literal["pairs", "ratings", "rollouts"]
KINDS: tuple[Kind, ...] = ("pairs", "ratings", "rollouts")
# What a row of ratings may hold, whatever its columns are called.
RATING_PARTS = ("prompt", "text", "rating", *EARLIER)


@dataclass(frozen=True, kw_only=True)
class RewardDataConfig:
    """Sources of a reward model's pairs, and limits.

    Exactly one of pairs, ratings and rollouts is set.

    Attributes:
      pairs: a preference set, in any shape that offline training reads.
      ratings: texts, or prompts with responses, each with a rating. Two ratings of one
        prompt are a pair; where there are no prompts, any two texts are.
      rollouts: the workdir of a run, whose sampled answers were scored.
      fields: the columns where they have other names than prompt, chosen, rejected and
        margin; of ratings than prompt, text and rating; of all than system and history.
      columns: of ratings in a .txt file: the names of its cells, which are separated by
        tabs, without a header.
      implicit_prompt, parse_json, ignore_columns, on_bad_rows, split, chat: as
        of a run.
      scored_pairs: what is made of several scored answers to one prompt: "all" pairs of
        those with different scores, or one, the best against the worst.
      pairs_per_text: where ratings have no prompts: the pairs that a text may be in.
        Texts are drawn into groups of one more, which share no text.
      min_margin: pairs whose margin is smaller are dropped, and counted.
      max_length: tokens of a prompt with its answer; longer pairs are dropped, never
        cut, and counted.
      timeout: seconds that a "module:function" of pairs or ratings may take; None: for
        ever.
    """

    pairs: str | None = None
    ratings: str | None = None
    rollouts: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] = ()
    implicit_prompt: bool = False
    parse_json: bool | None = None
    ignore_columns: Sequence[str] = ()
    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    split: str = "train"
    chat: bool = False
    scored_pairs: Literal["best_worst", "all"] = "all"
    pairs_per_text: int = 3
    min_margin: float = 0.0
    max_length: int = 1024
    timeout: float | None = TIMEOUT

    @property
    def kind(self) -> Kind:
        """Which of the three is set."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def source(self) -> str:
        """What is read."""
        return str(getattr(self, self.kind))

    def at(self, source: str, kind: Kind | None = None) -> "RewardDataConfig":
        """Returns the same for another source.

        Args:
          kind: None: this one. Of another kind the source has the usual columns, and
            what says nothing of that kind is left out.
        """
        kind = kind or self.kind
        change: dict[str, Any] = {**dict.fromkeys(KINDS), kind: source}
        if kind != self.kind:
            usual = RewardDataConfig()
            reset = ("fields", *(name for name in _ONLY if kind not in _ONLY[name]))
            change |= {name: getattr(usual, name) for name in reset}
        return replace(self, **change)

    def reading(self) -> DataConfig:
        """Returns how rows are read and written; no limit cuts them."""
        unlimited = 2**31 - 1
        return DataConfig(
            pairs=self.source,
            fields={} if self.kind == "rollouts" else self.fields,
            implicit_prompt=self.implicit_prompt,
            parse_json=self.parse_json,
            ignore_columns=self.ignore_columns,
            scored_pairs=self.scored_pairs,
            on_bad_rows=self.on_bad_rows,
            split=self.split,
            chat=self.chat,
            timeout=self.timeout,
            max_prompt_length=unlimited,
            max_completion_length=unlimited,
        )

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        given = {kind: getattr(self, kind) for kind in KINDS}
        if sum(value is not None for value in given.values()) != 1:
            came = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise BadInput(
                "set exactly one of data.pairs (a preference set), data.ratings (texts "
                f"with a rating) and data.rollouts (a run's workdir); they are {came}"
            )
        self._check_fields()
        defaults = RewardDataConfig()
        for name, kinds in _ONLY.items():
            changed = getattr(self, name) != getattr(defaults, name)
            if changed and self.kind not in kinds:
                wanted = " and ".join(f"data.{kind}" for kind in kinds)
                raise BadInput(
                    f"data.{name} concerns {wanted}, not data.{self.kind}; remove it"
                )
        if self.pairs_per_text < 1:
            raise BadInput(
                f"data.pairs_per_text is {self.pairs_per_text}; use at least 1"
            )
        if not 0 <= self.min_margin < float("inf"):
            raise BadInput(f"data.min_margin is {self.min_margin}; use 0 or more")
        if self.max_length < 2:
            raise BadInput(
                f"data.max_length is {self.max_length}; use 2 tokens or more"
            )

    def _check_fields(self) -> None:
        if self.kind == "pairs":
            check_fields(self.fields, "data.fields")
            return
        known = RATING_PARTS if self.kind == "ratings" else ()
        for part, column in self.fields.items():
            if part not in known:
                parts = ", ".join(known) or "none: its files have fixed columns"
                raise BadInput(
                    f"data.fields: {part!r} is not a part of a row of data.{self.kind}"
                    f"{nearest(part, known)} (parts: {parts})"
                )
            if not column:
                raise BadInput(f"data.fields: the column of {part!r} has no name")
        named = list(self.fields.values())
        if len(set(named)) < len(named):
            raise BadInput("data.fields: a column is used for two parts of a row")
        if len(set(self.columns)) < len(self.columns) or "" in self.columns:
            raise BadInput(
                f"data.columns is {list(self.columns)}; give each column its own name"
            )


# Fields that say something of some kinds of sources only.
_ONLY: Mapping[str, tuple[Kind, ...]] = {
    "columns": ("ratings",),
    "implicit_prompt": ("pairs",),
    "parse_json": ("pairs", "ratings"),
    "ignore_columns": ("pairs", "ratings"),
    "split": ("pairs", "ratings"),
    "pairs_per_text": ("ratings",),
}
