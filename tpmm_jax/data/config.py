"""Which prompts or pairs a run uses, and how they become tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tpmm_jax.errors import BadInput, nearest
from tpmm_jax.stopping import TIMEOUT

# What a row of a preference set may hold, whatever its columns are called.
PARTS = ("prompt", "chosen", "rejected")
# What may go before a prompt, of pairs and of prompts.
EARLIER = ("system", "history")
# What may stand beside a pair.
MARGIN = "margin"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources and limits.

    Attributes:
      prompts: a file, a saved dataset, a hub name, or "module:function" (returns a
        list of texts, message lists or token-id lists); every iteration takes its own.
      pairs: preference pairs for the offline mode; iteration t takes the t-th chunk.
        Exactly one of prompts and pairs is set.
      eval_prompts: a source like prompts; None: prompts are set aside from those, and
        with pairs nothing is sampled.
      fields: the columns of the pairs where they are not called prompt, chosen and
        rejected: {"chosen": "better", "rejected": "worse"}; of pairs and prompts alike
        "system" and "history", what goes before the prompt under a chat template; and
        of pairs "margin".
      implicit_prompt: pairs of texts without a prompt keep their common beginning as
        the prompt even where a question stands beside them, or a chat template makes it
        the user's message.
      parse_json: conversations stored as text (JSON, printed lists) are read, or taken
        as the texts that they are; None refuses them.
      ignore_columns: columns that say something about the prompt and are left unread,
        where they would be refused.
      scored_pairs: what is made of a row with several scored answers: one pair, the
        best against the worst, or "all" pairs of answers with different scores.
      on_bad_rows: malformed rows of prompts and pairs, and pairs whose sides are
        equal, are refused, all of them listed; or dropped with a count.
      prompt_field: column of the prompts; "messages" and "prompt_ids" are found too.
      split: of a hub dataset.
      chat: apply the tokenizer's chat template.
      max_prompt_length: tokens, BOS included.
      max_completion_length: tokens, EOS included; of offline pairs (a rollout's is
        rollout.max_new_tokens).
      truncate_prompt: the side that a longer prompt loses.
      timeout: seconds that a "module:function" of prompts may take; None: for ever.
    """

    prompts: str | None = None
    pairs: str | None = None
    eval_prompts: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    implicit_prompt: bool = False
    parse_json: bool | None = None
    ignore_columns: Sequence[str] = ()
    scored_pairs: Literal["best_worst", "all"] = "best_worst"
    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    prompt_field: str = "prompt"
    split: str = "train"
    chat: bool = False
    max_prompt_length: int = 512
    max_completion_length: int = 512
    truncate_prompt: Literal["left", "right"] = "left"
    timeout: float | None = TIMEOUT

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        if (self.prompts is None) == (self.pairs is None):
            raise BadInput(
                "set exactly one of data.prompts (rollouts, labelled by a scorer) and "
                f"data.pairs (offline); they are {self.prompts!r} and {self.pairs!r}"
            )
        check_fields(self.fields, "data.fields")
        if self.pairs is None and not set(EARLIER).issuperset(self.fields):
            raise BadInput(
                "data.fields names columns of data.pairs, which is not set; the column "
                "of data.prompts is data.prompt_field"
            )
        defaults = DataConfig()
        if self.implicit_prompt and self.pairs is None:
            raise BadInput("data.implicit_prompt concerns data.pairs, which is not set")
        if self.scored_pairs != defaults.scored_pairs and self.pairs is None:
            raise BadInput("data.scored_pairs concerns data.pairs, which is not set")
        column = self.prompt_field != defaults.prompt_field
        if column and self.prompts is None and self.eval_prompts is None:
            raise BadInput(
                f"data.prompt_field={self.prompt_field} names the column of prompts, "
                "of which none are set; that of data.pairs is "
                f'data.fields={{"prompt": "{self.prompt_field}"}}'
            )
        if self.pairs is None and (
            self.max_completion_length != defaults.max_completion_length
        ):
            raise BadInput(
                "data.max_completion_length cuts data.pairs, which is not set; that of "
                "a rollout is rollout.max_new_tokens"
            )


def check_fields(fields: Mapping[str, str], option: str) -> None:
    """Refuse names of columns that belong to no part of a pair, or to two."""
    for part, column in fields.items():
        if part not in (*PARTS, *EARLIER, MARGIN):
            known = nearest(part, (*PARTS, *EARLIER, MARGIN))
            raise BadInput(f"{option}: {part!r} is not a part of a row{known}")
        if not column:
            raise BadInput(f"{option}: the column of {part!r} has no name")
    columns = [fields.get(part, part) for part in PARTS]
    columns += [fields[part] for part in (*EARLIER, MARGIN) if part in fields]
    twice = next((c for c in columns if columns.count(c) > 1), None)
    if twice is not None:
        raise BadInput(f"{option}: the column {twice!r} is used for two parts of a row")
