"""Log-probs of held-out pairs: each computed once, and what the weights rest on."""

import io
import json
import pathlib
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import start

from tpmm_jax.chips import Chip
from tpmm_jax.config import Config, to_dict
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import read_metrics, read_timing
from tpmm_jax.loop import held_out
from tpmm_jax.loop.log_probs import pair_table
from tpmm_jax.loop.run import Disk
from tpmm_jax.loop.setup import open_run
from tpmm_jax.loop.workdir import ADDED, as_begun, check_unchanged, pin_config
from tpmm_jax.losses import pair_log_probs
from tpmm_jax.merging import ReferenceConfig, weighted_sum
from tpmm_jax.rewards import PairingConfig
from tpmm_jax.store.files import write_json

ITERATIONS = 3
# That computes in float32.
CHIP = Chip("cpu", flops=1e15, flops_32=1e12, memory=1, bandwidth=1, link=1)


def config(**changes: Any) -> Config:
    fields = {
        "iterations": ITERATIONS,
        "reference": ReferenceConfig(rule="learned"),
        **changes,
    }
    return tiny_run.get_config(**fields)


def record(workdir: pathlib.Path, t: int) -> dict[str, Any]:
    return json.loads((workdir / f"iterations/{t:03d}/reference.json").read_text())


class Crash(BaseException):
    """What a kill is to the code: nothing may catch it."""


class Passes:
    """Which policy read how many hold-outs, in the order of the calls."""

    def __init__(self, patch: pytest.MonkeyPatch, crash_at: int = -1) -> None:
        self.seen: list[tuple[int, int]] = []
        self.pairs: list[held_out.CachedPairs] = []
        compute, gather = held_out._compute, held_out.held_out_pairs

        def counted(plan: Any, disk: Disk, voice: Any, k: int, some: Any, what: str):
            if len(self.seen) == crash_at:
                raise Crash
            self.seen.append((k, len(some)))
            return compute(plan, disk, voice, k, some, what)

        def kept(*args: Any) -> held_out.CachedPairs:
            self.pairs.append(gather(*args))
            return self.pairs[-1]

        patch.setattr(held_out, "_compute", counted)
        patch.setattr("tpmm_jax.loop.reference.held_out_pairs", kept)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Passes]:
    """An undisturbed run, and what it computed."""
    workdir = tmp_path_factory.mktemp("held_out") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        passes = Passes(patch)
        patch.setattr("tpmm_jax.loop.training.find_chip", lambda kind: CHIP)
        start(config(), workdir)
    return workdir, passes


def test_each_policy_reads_each_hold_out_once(
    whole: tuple[pathlib.Path, Passes],
) -> None:
    """Iteration t: its hold-out under t policies, the others under the newest; the
    evaluation has read the newest policy's own."""
    _, passes = whole
    # Hold-outs 1 and 2; then 3, and 1 under theta_2.
    assert passes.seen == [(0, 2), (1, 1), (0, 1), (1, 1), (2, 2)]


def test_the_log_probs_are_the_policies(whole: tuple[pathlib.Path, Passes]) -> None:
    workdir, passes = whole
    last, out = passes.pairs[-1], io.StringIO()
    assert sorted(last.logps) == list(range(ITERATIONS))
    with open_run(config(), workdir, RunConsole(out, out)) as run:
        table = pair_table(run.plan.runner, last.rows)
        batch = {name: jnp.asarray(x) for name, x in table.items()}
        for k, logps_PN in last.logps.items():
            assert logps_PN.dtype == np.float32
            wanted = pair_log_probs(run.plan.decoder, run.disk.policy(k), batch)
            np.testing.assert_allclose(logps_PN, wanted, rtol=0, atol=1e-4)
    margins = last.margins(length_normalized=False)
    ratios = last.logps[2].astype(np.float64) - last.logps[0]
    np.testing.assert_array_equal(margins.of(2), ratios[:, 0] - ratios[:, 1])
    np.testing.assert_array_equal(margins.of(0), np.zeros(len(last.rows)))
    lengths = [len(r.chosen_ids) + len(r.rejected_ids) for r in last.rows]
    np.testing.assert_allclose(margins.drift_K[1], ratios.sum() / sum(lengths))
    normal = last.margins(length_normalized=True).of(2)
    row = last.rows[3]
    wanted = ratios[3, 0] / len(row.chosen_ids) - ratios[3, 1] / len(row.rejected_ids)
    np.testing.assert_allclose(normal[3], wanted)


def test_the_weighted_margins_are_nearly_the_merges_own(
    whole: tuple[pathlib.Path, Passes],
) -> None:
    """What weights are fitted on, against the merge; of first order, so that halving
    what the policies changed quarters the difference."""
    workdir, passes = whole
    pairs, errors, out = passes.pairs[-1], [], io.StringIO()
    weights = record(workdir, ITERATIONS)["weights"][0]
    with open_run(config(), workdir, RunConsole(out, out)) as run:
        table = pair_table(run.plan.runner, pairs.rows)
        batch = {name: jnp.asarray(x) for name, x in table.items()}
        policies = [run.disk.policy(k) for k in range(ITERATIONS)]

        def logps_of(params: Any) -> np.ndarray:
            found = pair_log_probs(run.plan.decoder, params, batch)
            return np.asarray(found, np.float64)

        for size in (1.0, 0.5, 0.25):
            moved = [
                jax.tree.map(lambda x, y, size=size: x + size * (y - x), policies[0], p)
                for p in policies
            ]
            merged, _ = weighted_sum(moved, weights)
            logps = {k: logps_of(p) for k, p in enumerate([*moved, merged])}
            margins = replace(pairs, logps=logps).margins(length_normalized=False)
            exact_P = margins.of(ITERATIONS)
            sum_P = sum(w * margins.of(k) for k, w in enumerate(weights))
            errors.append(np.abs(sum_P - exact_P).mean())
            if size == 1.0:
                assert np.corrcoef(sum_P, exact_P)[0, 1] > 0.98
                np.testing.assert_allclose(loss(sum_P), loss(exact_P), rtol=0.01)
    assert errors[2] > 1e-5, "too near to rounding to say anything"
    np.testing.assert_allclose(errors[1] / errors[2], 4, rtol=0.2)
    told = [row for row in read_metrics(workdir) if row["kind"] == "iteration"]
    assert told[-1]["merge/surrogate"] > 0.98


def loss(margin_P: np.ndarray) -> float:
    """Returns the DPO loss of margins at the run's beta."""
    return float(np.logaddexp(0, -config().loss.beta * margin_P).mean())


def test_the_record_says_how_far_to_believe_the_weights(
    whole: tuple[pathlib.Path, Passes],
) -> None:
    workdir, _ = whole
    assert record(workdir, 1)["weights"] == [[1.0]]
    # One checkpoint beside theta_0: nothing to tell apart.
    assert record(workdir, 2)["weights"] == [[0.5, 0.5]]
    found = record(workdir, ITERATIONS)
    np.testing.assert_allclose(found["weights"][0][0], 0.5)
    np.testing.assert_allclose(np.sum(found["weights"]), 1.0)
    assert found["learned"] == (found["gain"] > found["gain_error"])
    assert len(found["accuracies"]) == len(found["coefficients"]) == ITERATIONS - 1
    assert found["residual"] <= 1e-6 and found["left_out"] == {}


@pytest.mark.slow
def test_a_run_that_was_killed_in_a_pass_leaves_the_same_bytes(
    whole: tuple[pathlib.Path, Passes],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed, _ = whole
    for crash_at in (1, 3):
        with monkeypatch.context() as patch:
            Passes(patch, crash_at)
            with pytest.raises(Crash):
                start(config(), tmp_path)
    start(config(), tmp_path)
    for path in undisturbed.glob("iterations/*/*"):
        again = tmp_path / path.relative_to(undisturbed)
        assert again.read_bytes() == path.read_bytes(), path.name
    # What is gone of a finished iteration is no loss: it is computed where it is read.
    for path in tmp_path.glob(f"iterations/*/{held_out.NAME}"):
        path.unlink()
    with monkeypatch.context() as patch:
        passes = Passes(patch)
        start(config(iterations=ITERATIONS + 1), tmp_path)
    assert passes.seen == [(0, 4), (1, 3), (2, 3), (3, 3)]
    start(config(iterations=ITERATIONS + 1), undisturbed)
    name = f"iterations/{ITERATIONS + 1:03d}/reference.json"
    one, other = (json.loads((f / name).read_text()) for f in (undisturbed, tmp_path))
    np.testing.assert_allclose(one["weights"], other["weights"], atol=1e-5)


@pytest.mark.slow
def test_a_window_reads_the_last_hold_outs_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    reference = ReferenceConfig(rule="learned", holdout_window=1, anchor_share=0.25)
    start(config(reference=reference, iterations=3), tmp_path)
    assert passes.seen == [(0, 1), (1, 1), (0, 1), (1, 1), (2, 1)]
    np.testing.assert_allclose(record(tmp_path, 3)["weights"][0][0], 0.25)


def test_without_held_out_pairs_weights_cannot_be_learned(
    tmp_path: pathlib.Path,
) -> None:
    pairing = PairingConfig(holdout_fraction=0.01)
    with pytest.raises(BadInput, match="no held-out pair to weight checkpoints"):
        start(config(pairing=pairing), tmp_path)


def test_every_phase_of_an_iteration_is_timed(
    whole: tuple[pathlib.Path, Passes],
) -> None:
    workdir, _ = whole
    for t in range(1, ITERATIONS + 1):
        rows = [row for row in read_timing(workdir) if row["iteration"] == t]
        seconds = {row["kind"]: row["seconds"] for row in rows}
        assert len(rows) == len(seconds) and min(seconds.values()) >= 0
        phases = {"rollout", "score", "merge", "reference", "train", "save"}
        assert {*seconds} == phases | {"evaluation", "iteration"}
        whole_time = seconds.pop("iteration")
        assert sum(seconds.values()) <= whole_time


def test_the_share_of_the_chips_products(whole: tuple[pathlib.Path, Passes]) -> None:
    """Between what all rows cost at the shortest and at the longest length."""
    workdir, _ = whole
    made = config()
    with open_run(made, workdir, RunConsole(io.StringIO(), io.StringIO())) as run:
        lengths, devices = run.plan.runner.pair_lengths, run.plan.mesh.size
        c, rows = run.plan.decoder.config, 2 * made.train.filled(run.plan.mesh)

    def flops(length: int) -> float:
        weights = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
        layer = 2 * (weights + 3 * c.width * c.mlp_width)
        layer += 4 * length * c.num_heads * c.head_dim
        head = 2 * c.vocab_size * c.width * (length - 1) / length
        return (3 * c.num_layers * layer + 4 * head) * rows * length

    steps = [
        row["iteration"] for row in read_metrics(workdir) if row["kind"] == "train"
    ]
    for row in read_timing(workdir):
        if row["kind"] == "train":
            found = row["mfu"] * row["seconds"] * CHIP.flops_32 * devices
            found /= steps.count(row["iteration"])
            assert 0.98 * flops(min(lengths)) <= found <= 1.02 * flops(max(lengths))


@pytest.mark.parametrize("pooled, window", [(False, 1), (True, None)])
def test_a_run_of_before_goes_on_as_it_began_and_again(
    tmp_path: pathlib.Path, pooled: bool, window: int | None
) -> None:
    """Its config.json has earlier_holdouts and no fit: so Adam, and those hold-outs."""
    begun = to_dict(config())
    for name in ("fit", "holdout_window", "anchor_share", "mix"):
        del begun["reference"][name]
    begun["reference"]["earlier_holdouts"] = pooled
    write_json(tmp_path / "config.json", begun)
    for _ in range(2):
        now = as_begun(tmp_path, config(), ADDED)
        assert now.reference.fit == "adam"
        assert now.reference.holdout_window == window
        check_unchanged(tmp_path, to_dict(now), (), ADDED)
        pin_config(tmp_path, to_dict(now), started=True, added=ADDED)
        kept = json.loads((tmp_path / "config.json").read_text())["reference"]
        assert kept["earlier_holdouts"] == pooled and "fit" not in kept
    other = config(reference=ReferenceConfig(rule="learned", holdout_window=3))
    with pytest.raises(BadInput, match="holdout_window"):
        check_unchanged(tmp_path, to_dict(other), (), ADDED)
