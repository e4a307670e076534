"""Judges: which of two answers is better, by any function "module:function"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards.scorer import call_checked
from tpmm_jax.stopping import TIMEOUT


@runtime_checkable
class Judge(Protocol):
    """Compares answers; it does not see which policy wrote which.

    The lists are the function's own, as a scorer's are.

    Args:
      prompts: B texts.
      first, second: for each prompt two answers.

    Returns:
      B numbers in [0, 1], the share for the first answer: 1 where it is better, 0
      where the second is, 0.5 for a tie.

    Example:
      >>> def longer(prompts, first, second):
      ...     return [float(len(a) > len(b)) for a, b in zip(first, second)]
      >>> NamedJudge("longer", longer)(["Hi"], ["Good morning!"], ["Hello!"])
      array([1.])
    """

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> Any: ...


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of B pairs of answers.

    Attributes:
      share_B: float64, the share for the first answer; 0.5 where none could be read.
      unread_B: of a model's replies, whether one could not be read.
      replies: a model's, in its words.
    """

    share_B: np.ndarray
    unread_B: np.ndarray | None = None
    replies: Sequence[str] | None = None


@dataclass(frozen=True)
class NamedJudge:
    """A judge whose every answer is checked.

    Attributes:
      name: as messages give it, such as "careful (my_judges:careful)".
      timeout: seconds that one call may take; None: for ever.
      option: the field or option that sets the timeout, for messages.
      retries: see ``ScorerConfig``.
      digest: of a model of ours, which gives Verdicts; None of a user's function.
    """

    name: str
    function: Judge
    timeout: float | None = TIMEOUT
    option: str = ""
    retries: int = 0
    digest: str | None = None

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """Returns the share of the first answers [B], float64; see ``verdicts``."""
        return self.verdicts(prompts, first, second).share_B

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> Verdicts:
        """Returns what it says of each pair.

        Raises:
          BadInput: the judge raised, or returned another shape or a number outside
            [0, 1]; the message names the judge.
        """
        if self.digest is not None:
            return self.function(prompts, first, second)
        share_B = call_checked(
            f"judge {self.name}",
            lambda: self.function(list(prompts), list(first), list(second)),
            prompts,
            shape=(len(prompts),),
            meaning="one number per prompt, the share for the first answer",
            timeout=self.timeout,
            option=self.option,
            retries=self.retries,
        )
        # Written so that nan is caught too.
        wrong = ~((share_B >= 0) & (share_B <= 1))
        if wrong.any():
            b = int(np.argmax(wrong))
            raise BadInput(
                f"judge {self.name} returned {share_B[b]} for prompt "
                f"{prompts[b][:60]!r}; wanted numbers from 0 (second better) to 1 "
                "(first better)"
            )
        return Verdicts(share_B)

    def probe(self, prompt: str) -> np.ndarray:
        """Returns what it says of made-up answers, before anything expensive."""
        first = ["This is one answer.", "This is another answer.", ""]
        return self([prompt] * 3, first, first[::-1])
