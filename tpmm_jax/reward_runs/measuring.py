"""The rewards of a set of pairs, and what they say."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.config import HELD_OUT
from tpmm_jax.errors import TpmmError
from tpmm_jax.evaluation import choice_accuracy, measure_pairs
from tpmm_jax.loop.safety import refuse_rewards
from tpmm_jax.models import Adapted, Decoder
from tpmm_jax.reward_runs.plan import RewardPlan
from tpmm_jax.reward_runs.routers import Routing
from tpmm_jax.scoring import row_rewards


def rewards_of(
    plan: RewardPlan,
    params: Params | Adapted,
    advance: Callable[[int], None],
    title: str,
    routing: Routing | None = None,
    decoder: Decoder | None = None,
) -> dict[str, np.ndarray]:
    """Returns the rewards [P, N] of every test set by name, float64.

    Args:
      advance: called with the number of answers that were done.
      title: what is measured, for messages.
      routing: of a mixture: is given what its routers do with the held-out pairs.
      decoder: the model's architecture; None: that of what is trained.

    Raises:
      NotFinite: a reward is not finite; names the pairs.
    """
    found = {}
    for name, pairs in plan.sets.tests.items():
        rows = [
            [*pair.prompt_ids, *ids]
            for pair in pairs
            for ids in (pair.chosen_ids, pair.rejected_ids)
        ]
        size = plan.config.train.micro_batch
        rewards = row_rewards(
            decoder or plan.decoder,
            params,
            rows,
            batch_size=2 * size,
            advance=advance,
            routing=routing.add if routing and name == HELD_OUT else None,
        )
        found[name] = rewards.reshape(len(pairs), 2)
        refuse_rewards(found[name], pairs, f"{title}, {name}")
    return found


def refuse_constant(rewards: dict[str, np.ndarray]) -> None:
    """Raises TpmmError where a model gives every answer the same reward."""
    rewards_PN = rewards[HELD_OUT]
    if np.ptp(rewards_PN) == 0:
        raise TpmmError(
            f"the model gives each of {rewards_PN.size:,} held-out answers the same "
            f"reward, {rewards_PN.flat[0]:g}: it has learned nothing, or its weights "
            "are damaged; use another train.learning_rate or another model.source, in "
            "a new --workdir"
        )


def measure_sets(
    plan: RewardPlan, rewards: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Returns the measures of every test set, by its name."""
    return {name: _measure(plan, name, rewards[name]) for name in plan.sets.tests}


def _measure(plan: RewardPlan, name: str, rewards_PN: np.ndarray) -> dict[str, Any]:
    rows = plan.sets.tests[name]
    prompts = [row.group for row in rows]
    lengths = [(len(row.chosen_ids), len(row.rejected_ids)) for row in rows]
    found = measure_pairs(rewards_PN, np.asarray(lengths), prompts)
    size = plan.config.evaluation.best_of
    choices = choice_accuracy(
        rewards_PN,
        prompts,
        [tuple(row.chosen_ids) for row in rows],
        [tuple(row.rejected_ids) for row in rows],
        size,
    )
    if choices is not None:
        share, count = choices
        head = f"best_of_{size}"
        found |= {
            head: share.mean,
            f"{head}/low": share.low,
            f"{head}/high": share.high,
            f"{head}/choices": count,
        }
    return found


def as_row(measures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the measures of all sets as one row's names, such as heldout/accuracy."""
    return {
        f"{of_set}/{name}": value
        for of_set, found in measures.items()
        for name, value in found.items()
    }
