"""What the package knows of one loss: a record beside the loss's function."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from jaxtyping import Array, Float

from tpmm_jax.losses.inputs import PerPair

# The options that go with each kind of loss, beside the constants that it reads:
# a margin's f-divergence, LD-DPO's weights of tokens, WPO's weights of pairs.
KINDS: dict[str, tuple[str, ...]] = {
    # Of a pair's margin.
    "pairwise": (
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "ld_alpha",
        "use_weighting",
    ),
    # Of chosen and rejected, each by itself.
    "sidewise": ("ld_alpha", "use_weighting"),
    # Of all pairs of a batch together.
    "batchwise": ("ld_alpha",),
    # Of the policy alone, as a term of a sum of either of the other kinds.
    "likelihood": (),
    # Of the policy alone.
    "reference_free": (),
}

LOG2 = math.log(2)


@dataclass(frozen=True)
class Loss:
    """A loss of pairs, one entry of LOSSES.

    Attributes:
      function: (PairLogProbs, constants by name) -> the loss of each pair [B]. Its
        keyword arguments are fields of LossConfig: what it reads, and nothing else.
      kind: a key of KINDS.
      at_zero: the mean loss where every log-ratio is 0, or a function of the constants
        that gives it; for the self-check. None: no reference enters the loss.
      rewards: (PairLogProbs, constants by name) -> [B, N], what a loss without a
        reference logs as rewards, before beta; None: sums of log-probs.
      usual: the usual value of constants that have no right default for this loss.
      carried_reads: what the state that it carries from step to step reads.
      metrics: (PairLogProbs, constants by name) -> further metrics of each pair [B].
      needs_margins: whether it reads the rewards' margins of a batch, margin_B.
      trl_name: what TRL calls it, if it is something else.
    """

    function: Callable[..., PerPair]
    kind: str
    _: KW_ONLY
    at_zero: float | Callable[[Mapping[str, Any]], float] | None = None
    rewards: Callable[..., Float[Array, "B N"]] | None = None
    usual: Mapping[str, str] = field(default_factory=dict)
    carried_reads: tuple[str, ...] = ()
    metrics: Callable[..., dict[str, PerPair]] | None = None
    needs_margins: bool = False
    trl_name: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of LossConfig that change this loss."""
        return (*keywords(self.function), *self.carried_reads, *KINDS[self.kind])


@functools.cache
def keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the names of a function's keyword-only arguments."""
    found = inspect.signature(function).parameters.values()
    return tuple(p.name for p in found if p.kind is p.KEYWORD_ONLY)
