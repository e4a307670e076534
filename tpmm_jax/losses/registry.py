"""All losses by name, and the names by kind."""

from collections.abc import Iterable

from tpmm_jax.losses.batchwise import BATCHWISE
from tpmm_jax.losses.madpo import MADPO
from tpmm_jax.losses.pairwise import PAIRWISE
from tpmm_jax.losses.record import Loss
from tpmm_jax.losses.reference_free import REFERENCE_FREE
from tpmm_jax.losses.sidewise import SIDEWISE

LOSSES: dict[str, Loss] = {
    **PAIRWISE,
    **MADPO,
    **SIDEWISE,
    **BATCHWISE,
    **REFERENCE_FREE,
}


def names_of(*kinds: str) -> tuple[str, ...]:
    """Returns the names of all losses of these kinds.

    >>> names_of("batchwise")
    ('aot', 'aot_unpaired', 'beta_dpo', 'dr_dpo')
    """
    return tuple(name for name, loss in LOSSES.items() if loss.kind in kinds)


def is_reference_free(names: Iterable[str]) -> bool:
    """Whether no reference enters the sum of these losses."""
    return {LOSSES[name].kind for name in names} <= {"reference_free", "likelihood"}


# Losses that see the reference in a pair's D alone: a constant of the prompt cancels.
# IPO is one of summed log-probs, and f-divergences other than the reverse KL end it.
OF_MARGINS = (
    *("dpo", "cdpo", "robust", "ipo", "hinge", "exo", "discopop", "madpo"),
    *("aot", "beta_dpo", "dr_dpo", "sft"),
)


# Losses with a mean over a batch's chosen tokens.
OF_TOKENS = ("sft", "orpo", "cpo", "cpo_hinge", "cpo_ipo")


def sees_batch(names: Iterable[str]) -> bool:
    """Whether it matters which pairs share a batch, beyond the order of steps."""
    names = tuple(names)
    return is_coupled(names) or not set(names).isdisjoint(OF_TOKENS)


def is_coupled(names: Iterable[str]) -> bool:
    """Whether a pair's loss depends on the other pairs of its batch."""
    return any(LOSSES[name].kind == "batchwise" for name in names)
