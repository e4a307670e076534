"""Pair weights by the agreement of earlier policies."""

import json
import pathlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import start

import tpmm_jax as tpmm
from tpmm_jax.config import Config
from tpmm_jax.errors import BadInput
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.loop import agreement, training
from tpmm_jax.losses import LossConfig
from tpmm_jax.losses.preference import PairScores, coupled_loss
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import PairingConfig


def config(weights: str) -> Config:
    return tiny_run.get_config(
        iterations=3,
        reference=ReferenceConfig(rule="previous"),
        pairing=PairingConfig(holdout_fraction=0.3, weights=weights),
    )


@pytest.fixture(scope="module")
def weighted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, list[np.ndarray]]:
    """A run, and the weights that its training was given."""
    workdir, given = tmp_path_factory.mktemp("agreement") / "run", []

    def kept(*args: object) -> np.ndarray:
        given.append(agreement.pair_weights(*args))
        return given[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "pair_weights", kept)
        start(config("agreement"), workdir)
    return workdir, given


def ratio(workdir: pathlib.Path, k: int, prompt: list[int], answer: list[int]) -> float:
    """log p(answer) under theta_k minus that under theta_0, one answer alone."""
    found = []
    for step in (k, 0):
        model = tpmm.load(f"{workdir}/trajectory@{step}")
        tokens = np.array([[*prompt, *answer]], np.int32)
        logp = np.asarray(tpmm.log_probs(model, tokens, np.ones_like(tokens)))
        found.append(logp[0, len(prompt) - 1 :].sum())
    return found[0] - found[1]


def test_weights_follow_the_earlier_policies(
    weighted: tuple[pathlib.Path, list[np.ndarray]],
) -> None:
    workdir, given = weighted
    assert len(given) == 2  # no policy precedes the first iteration's
    lines = (workdir / "iterations/003/pairs.jsonl").read_text().splitlines()
    pairs = [x for x in map(json.loads, lines) if not x["held_out"]]
    agreed = [
        sum(
            ratio(workdir, k, pair["prompt_ids"], pair["chosen_ids"])
            > ratio(workdir, k, pair["prompt_ids"], pair["rejected_ids"])
            for k in (1, 2)
        )
        for pair in pairs
    ]
    wanted = 1.0 + np.array(agreed)
    np.testing.assert_allclose(given[1], wanted / wanted.mean(), rtol=1e-6)
    assert len(set(agreed)) > 1
    rows = iteration_rows(workdir)
    assert "pairs/agreement" not in rows[1]
    assert rows[3]["pairs/agreement"] == pytest.approx(np.mean(agreed) / 2)


def test_weights_count_between_batches(
    weighted: tuple[pathlib.Path, list[np.ndarray]],
) -> None:
    """Of two batches of one pair each the loss is that pair's, times its weight."""
    pair = PairScores(jnp.array([[-1.0, -2.0]]), jnp.array([[-1.0, -2.0]]), None)
    objective = LossConfig(name="dpo").objective()
    decoder = tpmm.load(f"{weighted[0]}/trajectory@0").decoder
    whole = coupled_loss(decoder, objective)
    batch = {
        "completion_mask_BNT": jnp.ones((1, 2, 3)), "weight_B": jnp.ones(1),
        "reference_BN": jnp.array([[-1.5, -1.5]]),
    }  # fmt: skip
    one = jnp.ones(())
    plain = whole.loss(pair, batch, one, ())[0]
    for trust in (0.5, 1.5):
        counted = {**batch, "trust_B": jnp.array([trust])}
        value, (metrics, _) = whole.loss(pair, counted, one, ())
        assert value == pytest.approx(trust * plain)
        assert metrics["rewards/accuracies"] == 1


def test_losses_that_take_a_batch_together_are_refused() -> None:
    for name in ("dr_dpo", "beta_dpo", "aot"):
        with pytest.raises(BadInput, match="takes a batch's pairs together"):
            replace(config("agreement"), loss=LossConfig(name=name)).validate()


def test_training_begins_to_differ_with_the_second_iteration(
    weighted: tuple[pathlib.Path, list[np.ndarray]], tmp_path: pathlib.Path
) -> None:
    start(config("equal"), tmp_path)
    for step, same in ((1, True), (2, False)):
        mine, plain = (
            jax.device_get(tpmm.load(f"{workdir}/trajectory@{step}").params)
            for workdir in (weighted[0], tmp_path)
        )
        leaves = zip(jax.tree.leaves(mine), jax.tree.leaves(plain), strict=True)
        assert all(np.array_equal(x, y) for x, y in leaves) == same
