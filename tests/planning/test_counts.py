"""How often an iteration does what, counted by hand for each mode."""

import pathlib
from typing import Any

from tpmm_jax.config import Config, EvaluationConfig, load_config
from tpmm_jax.data.config import DataConfig
from tpmm_jax.losses import LossConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.planning.counts import Counts, count_work
from tpmm_jax.rewards import PairingConfig, ScorerConfig


def count(pairs: int | None = None, **changes: Any) -> Counts:
    fields = vars(load_config(pathlib.Path(__file__).parent / "tiny_plan.py")) | {
        "reference": ReferenceConfig(rule="learned")
    }
    return count_work(Config(**fields | changes), pairs)


def test_an_iteration_as_it_is() -> None:
    found = count()
    # 64 prompts, a quarter held out, four samples each; 16 prompts to evaluate on.
    assert (found.prompts, found.train, found.held_out) == (64, 48, 64)
    assert (found.evaluated, found.answers) == (1, 16)
    # The policy, theta_0 and the reference; a hold-out under 1.5 other policies, and
    # the newest on 2 hold-outs: averages over four iterations.
    assert (found.answer_passes, found.held_out_passes) == (3, 3 + 1.5 + 2)
    # Six pairs of four samples, of 2.5 iterations.
    assert found.pooled == 16 * 6 * 2.5
    assert (found.reference_passes, found.merges, found.judged) == (1, 1, 0)


def test_what_the_rules_add() -> None:
    sft = count(reference=ReferenceConfig(rule="sft"))
    assert (sft.answer_passes, sft.held_out_passes, sft.merges) == (2, 2, 0)
    exact = count(reference=ReferenceConfig(rule="learned", fit="exact"))
    assert exact.merges == 1 + 2 * 15
    adam = count(reference=ReferenceConfig(rule="learned", fit="adam", steps=7))
    assert (adam.merges, adam.held_out_passes) == (1 + 2 * 7, 3)
    best = count(reference=ReferenceConfig(rule="best"))
    assert (best.judged, best.merges) == (2.5, 1 + 2.5)
    mixed = count(reference=ReferenceConfig(rule="uniform", mix="log_probs"))
    assert (mixed.reference_passes, mixed.merges) == (2.5, 0)
    # 48 pairs are two steps, and the reference moves once.
    moving = ReferenceConfig(rule="trust_region", trust_region_tau=1)
    assert count(reference=moving).reference_passes == 1.5


def test_what_is_shipped_and_weighted_adds() -> None:
    mean = count(ship="mean")
    assert (mean.evaluated, mean.answer_passes, mean.merges) == (2, 3 + 2, 2)
    assert (mean.shipped, mean.chosen, count().shipped) == (16, 0, 0)
    # Theta_t and the mean draw on the held-out prompts.
    assert count(ship="auto").chosen == 16
    agreeing = count(pairing=PairingConfig(weights="agreement"))
    assert (agreeing.training_passes, count().training_passes) == (2.5, 0)
    free = {"loss": LossConfig(name="simpo"), "reference": ReferenceConfig(rule="none")}
    assert count(**free).answer_passes == 2
    sets = EvaluationConfig(num_prompts=20, samples_per_prompt=2, sets={"a": "b"})
    found = count(evaluation=sets)
    # Two sets of 20 prompts, 16 at a time.
    assert (found.evaluated, found.sets, found.answers) == (4, 2, 80)


def test_given_pairs() -> None:
    data = {"data": DataConfig(pairs="org/pairs"), "scorer": ScorerConfig()}
    found = count(pairs=400, **data)
    assert (found.prompts, found.train, found.held_out) == (0, 75, 50)
    assert (found.evaluated, found.answers) == (0, 0)
    assert count(**data).train == 0
