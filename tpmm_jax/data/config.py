"""Which prompts or pairs a run uses, and how they become tokens."""

from dataclasses import dataclass
from typing import Literal

from tpmm_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources and limits.

    Attributes:
      prompts: a file, a saved dataset, a hub name, or "module:function" (returns a
        list of texts, message lists or token-id lists); every iteration takes its own.
      pairs: preference pairs for the offline mode; iteration t takes the t-th chunk.
        Exactly one of prompts and pairs is set.
      eval_prompts: a source like prompts; None: prompts are set aside from those.
      prompt_field: column of the prompts; "messages" and "prompt_ids" are found too.
      split: of a hub dataset.
      chat: apply the tokenizer's chat template.
      max_prompt_length: tokens, BOS included.
      max_completion_length: tokens, EOS included; of offline pairs (a rollout's is
        rollout.max_new_tokens).
      truncate_prompt: the side that a longer prompt loses.
    """

    prompts: str | None = None
    pairs: str | None = None
    eval_prompts: str | None = None
    prompt_field: str = "prompt"
    split: str = "train"
    chat: bool = False
    max_prompt_length: int = 512
    max_completion_length: int = 512
    truncate_prompt: Literal["left", "right"] = "left"

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        if (self.prompts is None) == (self.pairs is None):
            raise BadInput(
                "set exactly one of data.prompts (rollouts, labelled by a scorer) and "
                f"data.pairs (offline); they are {self.prompts!r} and {self.pairs!r}"
            )
        for name in ("max_prompt_length", "max_completion_length"):
            if getattr(self, name) < 1:
                raise BadInput(f"data.{name} is {getattr(self, name)}; use at least 1")
