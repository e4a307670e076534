"""Every rule, storage, mesh and mode runs; what must hold of each holds."""

import dataclasses
import functools
import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_run

from tpmm_jax.commands import train as command_line
from tpmm_jax.config import Config, ModelSource, StoreConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput, CorruptCheckpoint, TpmmError
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.loop.setup import space_needed
from tpmm_jax.losses import LossConfig
from tpmm_jax.merging import RULES, ReferenceConfig
from tpmm_jax.mesh import MeshConfig
from tpmm_jax.models import Decoder
from tpmm_jax.models.published import SIZES
from tpmm_jax.report.gather import read_run
from tpmm_jax.report.page import write_report
from tpmm_jax.report.samples import run_samples
from tpmm_jax.report.watched import looked_at, not_looked_at
from tpmm_jax.rewards import MadpoConfig, PairingConfig, ScorerConfig
from tpmm_jax.steps import TrainConfig
from tpmm_jax.store.digests import write_listed_json


def start(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    out = io.StringIO()
    command_line.run(config, workdir, RunConsole(out, out))
    return read_metrics(workdir)


@pytest.mark.parametrize(
    ("reference", "trees"),
    [
        ({"rule": "uniform"}, 0),
        ({"rule": "best"}, 0),
        ({"rule": "learned"}, 0),
        ({"rule": "learned", "fit": "exact"}, 1),
        ({"rule": "learned", "fit": "adam"}, 1),
        ({"rule": "greedy_soup"}, 1),
    ],
)
def test_room_is_asked_for_deltas_where_merges_are_tried(
    reference: dict[str, Any], trees: int
) -> None:
    decoder, rules = Decoder(SIZES["gemma-2b"]), ReferenceConfig(**reference)
    plain = tiny_run.get_config(reference=ReferenceConfig(rule="previous"))
    config = tiny_run.get_config(reference=rules)
    more = space_needed(config, decoder) - space_needed(plain, decoder)
    assert more == trees * config.iterations * 4 * decoder.num_params


def of_kind(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def record(workdir: pathlib.Path, iteration: int) -> dict[str, Any]:
    path = workdir / "iterations" / f"{iteration:03d}" / "reference.json"
    return json.loads(path.read_text())


EXPECTED = {
    "sft": [1.0, 0.0, 0.0],
    "previous": [0.0, 0.0, 1.0],
    "uniform": [1 / 3, 1 / 3, 1 / 3],
    "ema": [0.25, 0.25, 0.5],
}


# In the runs of docs/, README.md and every other test of a run; and what differs from
# these in the choice of checkpoints alone, which merging/ tests.
SEEN = ("learned", "previous", "uniform", "best", "greedy_soup")


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=pytest.mark.slow if rule in SEEN else ())
        for rule in RULES
        if rule != "trust_region"
    ],
)
def test_rules(tmp_path: pathlib.Path, rule: str) -> None:
    reference = ReferenceConfig(rule=rule, fit="adam", steps=3, batch_size=8)
    rows = start(tiny_run.get_config(iterations=3, reference=reference), tmp_path)
    weights = np.asarray(record(tmp_path, 3)["weights"])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)
    if rule in EXPECTED:
        np.testing.assert_allclose(weights[0], EXPECTED[rule], rtol=1e-12)
    if rule in ("best", "greedy_soup"):
        assert len(record(tmp_path, 3)["held_out_losses"]) == 3
    assert [row["iteration"] for row in of_kind(rows, "iteration")] == [0, 1, 2, 3]


def test_layer_granularity(tmp_path: pathlib.Path) -> None:
    reference = ReferenceConfig(
        rule="learned", fit="adam", granularity="layer", steps=4, batch_size=8
    )
    config = tiny_run.get_config(
        reference=dataclasses.replace(
            reference, start="carried", holdout_window=2, kl_weight=0.01
        )
    )
    start(config, tmp_path)
    found = record(tmp_path, 2)
    assert found["groups"] == ["layer 0", "layer 1", "embedding", "final_norm"]
    weights = np.asarray(found["weights"])
    assert weights.shape == (4, 2) and np.ptp(weights[:, 0]) > 0


def test_trust_region_moves_and_resumes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = ReferenceConfig(rule="trust_region", trust_region_tau=2)
    config = tiny_run.get_config(iterations=1, reference=reference)
    rows = of_kind(start(config, tmp_path / "whole"), "train")
    digests = [row["reference/digest"] for row in rows if "reference/digest" in row]
    assert len(digests) == len(set(digests)) == len(rows) // 2

    from tpmm_jax.store import WorkStore

    save, saves = WorkStore.save, []

    def save_then_stop(self: WorkStore, step: int, *args: Any) -> None:
        save(self, step, *args)
        saves.append(step)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(WorkStore, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "stopped")
    assert start(config, tmp_path / "stopped") == read_metrics(tmp_path / "whole")


def test_a_tau_that_is_never_reached_is_refused(tmp_path: pathlib.Path) -> None:
    reference = ReferenceConfig(rule="trust_region", trust_region_tau=500)
    with pytest.raises(BadInput, match="would never move"):
        start(tiny_run.get_config(reference=reference), tmp_path)
    assert not (tmp_path / "trajectory" / "0").exists()


def write_pairs(path: pathlib.Path, count: int) -> None:
    rng = np.random.default_rng(0)
    even, odd = tiny_run.WORDS[::2], tiny_run.WORDS[1::2]
    with path.open("w") as file:
        for _ in range(count):
            row = {
                "prompt": " ".join(rng.choice(tiny_run.WORDS, 3)) + " ",
                "chosen": " ".join(rng.choice(even, 4)),
                "rejected": " ".join(rng.choice(odd, 4)),
            }
            file.write(json.dumps(row) + "\n")


def test_offline_pairs(tmp_path: pathlib.Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 48)
    config = tiny_run.get_config(
        data=DataConfig(pairs=str(tmp_path / "pairs.jsonl")),
        scorer=ScorerConfig(),
        pairing=PairingConfig(holdout_fraction=0.25),
        train=TrainConfig(learning_rate=3e-2, batch_size=4, epochs=2),
    )
    rows = start(config, tmp_path / "run")
    last = of_kind(rows, "iteration")[-1]
    assert last["heldout/accuracy"] > 0.7 and last["heldout/margin"] > 0
    assert "length/mean" not in last and last["pairs/held_out"] > 0
    assert "watch looked at nothing" in not_looked_at(read_run(tmp_path / "run"))
    with pytest.raises(BadInput, match="iterations: was 2, is now 3"):
        start(dataclasses.replace(config, iterations=3), tmp_path / "run")
    used = []
    for t in (1, 2):
        path = tmp_path / "run" / "iterations" / f"{t:03d}" / "pairs.jsonl"
        used += [json.loads(line)["origin"] for line in path.open()]
    assert len(used) == len(set(used)) == 48


def test_offline_pairs_with_a_scorer_to_evaluate(tmp_path: pathlib.Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 24)
    config = tiny_run.get_config(
        iterations=1,
        train=TrainConfig(learning_rate=3e-2, batch_size=4, epochs=2),
        data=DataConfig(
            pairs=str(tmp_path / "pairs.jsonl"), eval_prompts="tiny_run:prompts"
        ),
        pairing=PairingConfig(holdout_fraction=0.25),
    )
    rows = of_kind(start(config, tmp_path / "run"), "iteration")
    assert rows[1]["reward/mean"] > rows[0]["reward/mean"]


def test_offline_pairs_with_prompts_and_no_scorer(tmp_path: pathlib.Path) -> None:
    """Nothing rates the answers; they are sampled, measured and shown."""
    write_pairs(tmp_path / "pairs.jsonl", 24)
    config = tiny_run.get_config(
        iterations=1,
        data=DataConfig(
            pairs=str(tmp_path / "pairs.jsonl"), eval_prompts="tiny_run:prompts"
        ),
        scorer=ScorerConfig(),
    )
    first, last = of_kind(start(config, tmp_path / "run"), "iteration")
    assert {"length/mean", "length/cut", "distinct/2", "kl/theta_0"} <= {*first, *last}
    assert last["kl/theta_0"] != 0 and not any("reward/" in name for name in last)
    answers = (tmp_path / "run/iterations/001/evaluation.jsonl").read_text()
    row = json.loads(answers.splitlines()[0])
    assert "rewards" not in row and len(answers.splitlines()) == 6
    run = read_run(tmp_path / "run")
    assert run_samples(run)[0].samples and looked_at(run) == ["KL", "length"]
    assert "No scorer rated the answers" in not_looked_at(run)


def test_bfloat16_deltas_halve_the_trajectory(tmp_path: pathlib.Path) -> None:
    config = tiny_run.get_config(store=StoreConfig(storage="bfloat16_delta"))
    rows = start(config, tmp_path / "run")
    whole = start(tiny_run.get_config(), tmp_path / "whole")
    wanted = of_kind(whole, "iteration")[-1]["reward/mean"]
    assert abs(of_kind(rows, "iteration")[-1]["reward/mean"] - wanted) < 0.2


DATA = MeshConfig(data=-1, fsdp=1, tensor=1)
EVERY_AXIS = MeshConfig(data=2, fsdp=2, tensor=2)


def weighed(**changes: Any) -> Config:
    """Margins travel to the loss as a column of the batch."""
    loss, margins = LossConfig(name="madpo"), MadpoConfig(margins="tiny_run:score")
    return tiny_run.get_config(loss=loss, madpo=margins, **changes)


@pytest.fixture(scope="module")
def on_mesh(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[MeshConfig], pathlib.Path]:
    """Makes a run of one iteration on a mesh, once each; to be read only."""

    @functools.cache
    def made(mesh: MeshConfig) -> pathlib.Path:
        workdir = tmp_path_factory.mktemp("mesh") / "run"
        start(weighed(iterations=1, mesh=mesh), workdir)
        return workdir

    return made


@pytest.mark.parametrize(
    "mesh",
    [
        EVERY_AXIS,
        pytest.param(MeshConfig(data=1, fsdp=8, tensor=1), marks=pytest.mark.slow),
    ],
    ids=["2x2x2", "1x8x1"],
)
def test_meshes_agree(
    on_mesh: Callable[[MeshConfig], pathlib.Path], mesh: MeshConfig
) -> None:
    found = [read_metrics(on_mesh(m)) for m in (DATA, mesh)]
    for a, b in zip(*found, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], float) and "accuracies" not in name:
                assert abs(a[name] - b[name]) <= 2e-3, (name, a[name], b[name])


def test_a_run_continues_on_another_mesh(
    on_mesh: Callable[[MeshConfig], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    workdir = shutil.copytree(on_mesh(EVERY_AXIS), tmp_path / "run")
    rows = start(weighed(iterations=2, mesh=DATA), workdir)
    assert [row["iteration"] for row in of_kind(rows, "iteration")] == [0, 1, 2]


def test_bfloat16_computation(tmp_path: pathlib.Path) -> None:
    model = ModelSource(source="tiny_run:build_model", compute_dtype="bfloat16")
    config = tiny_run.get_config(iterations=1, model=model)
    rows = of_kind(start(config, tmp_path), "train")
    assert abs(rows[0]["rewards/margins"]) < 0.1
    assert rows[-1]["loss"] < rows[0]["loss"]


LOSSES_OF_A_RUN = {
    "aot": LossConfig(name="aot", label_smoothing=0.1),
    "ld": LossConfig(ld_alpha=0.5, f_divergence_type="js_divergence"),
    "sum": LossConfig(name=["dpo", "bco", "sft"], weights=[0.8, 0.2, 1.0]),
    "wpo": LossConfig(name="ipo", use_weighting=True),
}


@pytest.mark.parametrize(
    "name",
    [
        "aot",
        "sum",
        pytest.param("ld", marks=pytest.mark.slow),
        pytest.param("wpo", marks=pytest.mark.slow),
    ],
)
def test_losses_pass_the_self_check(tmp_path: pathlib.Path, name: str) -> None:
    train = TrainConfig(learning_rate=3e-3, batch_size=4, accumulation=2)
    config = tiny_run.get_config(iterations=1, loss=LOSSES_OF_A_RUN[name], train=train)
    rows = of_kind(start(config, tmp_path), "train")
    # Policy = reference in the first step: every log-ratio is 0.
    assert abs(rows[0]["rewards/margins"]) < 1e-3
    # So it says nothing of how well the pairs are told apart.
    last = of_kind(read_metrics(tmp_path), "iteration")[-1]
    apart = [row["rewards/accuracies"] for row in rows[1:]]
    assert last["pairs/train_accuracy"] == np.mean(apart)
    assert ("loss/sft" in rows[0]) == (name == "sum")


def test_without_a_reference_none_is_made(tmp_path: pathlib.Path) -> None:
    config = tiny_run.get_config(
        loss=LossConfig(name=["simpo", "sft"], beta=2.0),
        reference=ReferenceConfig(rule="none"),
    )
    rows = start(config, tmp_path)
    assert [row["iteration"] for row in of_kind(rows, "iteration")] == [0, 1, 2]
    last = of_kind(rows, "iteration")[-1]
    assert last["merge/rule"] == "none" and last["kl/theta_0"] != 0
    assert "kl/reference" not in last and not of_kind(rows, "reference")
    names = {path.name for path in (tmp_path / "iterations/002").iterdir()}
    assert not names & {"reference.json", "reference_logps.npz"}
    assert of_kind(rows, "train")[-1]["loss/simpo"] > 0
    write_report([tmp_path])
    assert "reference" in (tmp_path / "report.html").read_text()


def test_beta_dpo_stops_and_continues_to_the_same_bytes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = TrainConfig(learning_rate=3e-3, batch_size=4, epochs=2, checkpoint_every=1)
    config = tiny_run.get_config(
        iterations=1,
        loss=LossConfig(name="beta_dpo"),
        train=train,
        reference=ReferenceConfig(rule="sft"),
    )
    rows = of_kind(start(config, tmp_path / "whole"), "train")
    assert {"beta_dpo/beta", "beta_dpo/clamped", "beta_dpo/mean"} <= set(rows[0])
    summary = of_kind(read_metrics(tmp_path / "whole"), "iteration")[-1]
    clamped = np.mean([row["beta_dpo/clamped"] for row in rows])
    assert summary["beta_dpo/clamped"] == clamped
    from tpmm_jax.store import WorkStore

    save = WorkStore.save

    def save_then_stop(self: WorkStore, step: int, *args: Any) -> None:
        save(self, step, *args)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(WorkStore, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "stopped")
    monkeypatch.setattr(WorkStore, "save", save)
    start(config, tmp_path / "stopped")
    bytes_of = [
        (tmp_path / name / "metrics.jsonl").read_bytes()
        for name in ("whole", "stopped")
    ]
    assert bytes_of[0] == bytes_of[1]


def test_the_self_check_refuses_wrong_log_probs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpmm_jax.loop import reference

    right = reference.table_log_probs

    def wrong(*args: Any, **kwargs: Any) -> Any:
        logps_MN = right(*args, **kwargs)
        logps_MN[0, 0] += 0.5
        return logps_MN

    monkeypatch.setattr(reference, "table_log_probs", wrong)
    with pytest.raises(TpmmError, match="self-check failed"):
        start(tiny_run.get_config(), tmp_path)
    assert not (tmp_path / "iterations" / "001" / "reference_logps.npz").exists()


def test_a_changed_record_or_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    start(tiny_run.get_config(iterations=1), tmp_path)
    folder = tmp_path / "iterations" / "002"
    folder.mkdir()
    wrong = {
        "rule": "learned",
        "groups": ["model"],
        "weights": [[0.0, 1.0]],
        "digest": "0" * 64,
        "signal_to_rounding": None,
    }
    write_listed_json(folder / "reference.json", wrong)
    with pytest.raises(CorruptCheckpoint, match="records a reference of digest"):
        start(tiny_run.get_config(iterations=2), tmp_path)


@pytest.mark.parametrize(
    "train_from, rule",
    [
        pytest.param("theta_0", "sft", marks=pytest.mark.slow),
        ("reference", "uniform"),
    ],
)
def test_training_begins_where_it_is_told(
    tmp_path: pathlib.Path, train_from: str, rule: str
) -> None:
    """At the reference every margin of the first step is 0, in each iteration."""
    config = tiny_run.get_config(
        reference=ReferenceConfig(rule=rule), train_from=train_from
    )
    rows = start(config, tmp_path / "run")
    first = [row for row in of_kind(rows, "train") if row["step"] == 0]
    assert [row["iteration"] for row in first] == [1, 2]
    for row in first:
        np.testing.assert_allclose(row["rewards/margins"], 0, atol=1e-5)
    later = [row["rewards/margins"] for row in of_kind(rows, "train") if row["step"]]
    assert max(np.abs(later)) > 1e-3


@pytest.mark.parametrize(
    "train_from, reference, wanted",
    [
        ("theta_0", ReferenceConfig(rule="trust_region"), "trust_region moves"),
        (
            "reference",
            ReferenceConfig(rule="learned", mix="log_probs"),
            "nothing is merged",
        ),
    ],
)
def test_a_start_that_is_not_there_is_refused(
    train_from: str, reference: ReferenceConfig, wanted: str
) -> None:
    config = tiny_run.get_config(reference=reference, train_from=train_from)
    with pytest.raises(BadInput, match=f"train_from={train_from}.*{wanted}"):
        config.validate()
