"""A number that is not finite stops the run, is named, and is never stored."""

import dataclasses
import io
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from tpmm_jax import iterate
from tpmm_jax.axes import REJECTED
from tpmm_jax.commands import train as command_line
from tpmm_jax.config import Config
from tpmm_jax.errors import NotFinite
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.loop import reference, safety
from tpmm_jax.loop.safety import refuse_weights
from tpmm_jax.losses import LOSSES, LossConfig
from tpmm_jax.steps import TrainConfig
from tpmm_jax.store import WorkStore

CONFIG = dict(
    iterations=1,
    train=TrainConfig(
        learning_rate=3e-3, batch_size=4, epochs=2, accumulation=2, checkpoint_every=1
    ),
)


def start(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    out = io.StringIO()
    command_line.run(config, workdir, tiny_console(out))
    return read_metrics(workdir)


def tiny_console(out: io.StringIO) -> Any:
    from tpmm_jax.log.console import RunConsole

    return RunConsole(out, out)


def training_lines(workdir: pathlib.Path) -> list[int]:
    """Line numbers of pairs.jsonl's training pairs, in order."""
    lines = (workdir / "iterations/001/pairs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [i for i, row in enumerate(rows, start=1) if not row["held_out"]]


def check_nothing_bad(workdir: pathlib.Path, step: int) -> None:
    """Every row and checkpoint that was left is finite; theta_1 is not there."""
    rows = [row for row in read_metrics(workdir) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(step))
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert not (workdir / "trajectory" / "1").exists()


def test_a_bad_reference_log_prob_names_its_pair_and_repeats(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, right = tiny_run.get_config(**CONFIG), iterate.reference_log_probs
    bad: dict[str, int] = {}

    def wrong(plan: Any, disk: Any, voice: Any, t: int, pairs: Any) -> np.ndarray:
        logps_MN = right(plan, disk, voice, t, pairs).copy()
        # A pair of a later step, so that there is a checkpoint to go back to.
        from tpmm_jax.loop.task import BatchOrder

        order = BatchOrder(len(pairs.train), 4, 2, plan.config.seed, t)
        bad["place"] = int(order.places(1)[0])
        logps_MN[bad["place"], REJECTED] = -np.inf
        return logps_MN

    monkeypatch.setattr(iterate, "reference_log_probs", wrong)
    with pytest.raises(NotFinite) as error:
        start(config, tmp_path / "run")
    line = training_lines(tmp_path / "run")[bad["place"]]
    text = str(error.value)
    assert "iteration 1, step 1: loss is" in text
    assert f"pairs.jsonl:{line} (the reference's log-prob)" in text
    assert f"{tmp_path / 'run/work/1'} (step 1" in text
    assert str(tmp_path / "run/trajectory/0") in text
    check_nothing_bad(tmp_path / "run", 1)
    record = json.loads((tmp_path / "run/iterations/001/not_finite.json").read_text())
    assert record["step"] == 1 and len(record["pairs"]) == 1

    with pytest.raises(NotFinite, match="same step failed before"):
        start(config, tmp_path / "run")
    monkeypatch.setattr(iterate, "reference_log_probs", right)
    rows = start(config, tmp_path / "run")
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(len(steps))) and (tmp_path / "run/trajectory/1").exists()
    assert not (tmp_path / "run/iterations/001/not_finite.json").exists()


def test_a_gradient_that_is_no_number_is_found_pair_by_pair(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LOSSES["dpo"]

    def wrong(logps: Any, *, beta: Any) -> Any:
        # The root's slope is infinite at 0: a finite loss without a gradient.
        start_B = jnp.where(logps.length_BN[:, 0] > logps.length_BN[:, 1], 0.0, 1.0)
        zero_B = logps.policy_BN[:, 0] - jax.lax.stop_gradient(logps.policy_BN[:, 0])
        return right.function(logps, beta=beta) + jnp.sqrt(start_B + zero_B) - start_B

    by_gradient, sought = safety._by_gradient, []

    def at_step(plan: Any, state: Any, *rest: Any) -> dict[int, str]:
        sought.append(int(state.step))
        return by_gradient(plan, state, *rest)

    monkeypatch.setattr(safety, "_by_gradient", at_step)
    # A name of its own: compiled programs outlive a test.
    monkeypatch.setitem(LOSSES, "cusp", dataclasses.replace(right, function=wrong))
    # In the self-check policy = reference gives the right value all the same.
    config = tiny_run.get_config(**{**CONFIG, "loss": LossConfig(name="cusp")})
    with pytest.raises(NotFinite) as error:
        start(config, tmp_path)
    assert "grad_norm is" in str(error.value) and "(its gradient)" in str(error.value)
    record = json.loads((tmp_path / "iterations/001/not_finite.json").read_text())
    check_nothing_bad(tmp_path, record["step"])
    # By the step's own number: LoRA's dropout is drawn by it.
    assert sought == [record["step"]]
    lines = (tmp_path / "iterations/001/pairs.jsonl").read_text().splitlines()
    assert record["pairs"]
    for origin in record["pairs"]:
        row = json.loads(lines[int(origin.rsplit(":", 1)[1]) - 1])
        assert len(row["chosen_ids"]) > len(row["rejected_ids"])


def test_weights_that_are_not_finite_are_refused() -> None:
    good = {"a": jnp.ones(3), "b": {"scale": jnp.zeros(2)}}
    refuse_weights(good, "theta_1")
    bad = {**good, "b": {"scale": jnp.asarray([0.0, jnp.nan])}}
    with pytest.raises(NotFinite, match=r"theta_1 has weights .*\['b'\]\['scale'\]"):
        refuse_weights(bad, "theta_1")


def test_reference_log_probs_are_refused_where_they_arise(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference.table_log_probs

    def wrong(*args: Any, **kwargs: Any) -> np.ndarray:
        logps_MN = right(*args, **kwargs)
        logps_MN[2, 1] = np.nan
        return logps_MN

    monkeypatch.setattr(reference, "table_log_probs", wrong)
    with pytest.raises(NotFinite, match="reference log-probs: not finite") as error:
        start(tiny_run.get_config(**CONFIG), tmp_path)
    assert f"pairs.jsonl:{training_lines(tmp_path)[2]}" in str(error.value)
    assert not (tmp_path / "iterations/001/reference_logps.npz").exists()
    with WorkStore(tmp_path / "work") as work:
        assert work.steps() == []
