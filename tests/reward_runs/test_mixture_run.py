"""A tiny run of tpmm train_reward with experts: upcycled, trained, merged, compared."""

import io
import json
import shutil

import numpy as np
import pytest
import tiny_reward

import tpmm_jax as tpmm
from tpmm_jax.config import MergeBackConfig, ModelSource
from tpmm_jax.errors import BadInput, Stopped
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.loop.repair import repair
from tpmm_jax.loop.voice import StopFlag, Voice
from tpmm_jax.losses import RewardLossConfig
from tpmm_jax.models import LoraConfig, NoiseConfig
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.reward_runs.setup import prepare
from tpmm_jax.scoring import RewardScorer
from tpmm_jax.steps import TrainConfig

EXPERTS = UpcyclingConfig(count=3, top_k=2)
MODELS = ["start", "mixture", "uniform", "gating", "learned"]


def go(workdir):
    return tiny_reward.go(workdir, tiny_reward.get_mixture)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, what was printed) of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("mixture") / "umm"
    return workdir, go(workdir)


def read(workdir, name):
    return json.loads((workdir / "iterations/001" / name).read_text())


def test_routers_are_told_at_each_evaluation_and_of_the_best(run):
    workdir, said = run
    rows = [row for row in read_metrics(workdir) if row["kind"] == "held_out"]
    assert [row["step"] for row in rows] == [0, 4, 8, 12, 14]
    first, last = rows[0], rows[-1]
    assert first["router/from_start"] == first["router/apart"] == 0
    assert first["router/shared_from_start"] == 0
    assert last["router/from_start"] > 0 and last["router/apart"] > 0
    for row in rows:
        assert np.shape(row["router/share"]) == (2, 3)
        np.testing.assert_allclose(np.sum(row["router/share"], axis=1), 1, atol=1e-6)
    tables, summary = read(workdir, "router.json"), read(workdir, "summary.json")
    (best,) = (row for row in rows if row["step"] == summary["step"])
    assert tables["share"] == best["router/share"]
    assert summary["routers"]["router/from_start"] == best["router/from_start"]
    assert "routed experts: 2 of 3 a token; shares" in said
    page = (workdir / "report.html").read_text()
    assert "Share of each expert" in page and "Distances of experts" in page


def test_all_models_are_measured_on_all_sets(run):
    workdir, said = run
    summary = read(workdir, "summary.json")
    compared = summary["compared"]
    assert list(compared) == sorted(MODELS)
    for measures in compared.values():
        assert measures.keys() == {"heldout", "others"}
    best = {k: v for k, v in summary["sets"]["heldout"].items() if k in ("loss", "ece")}
    assert best.items() <= compared["mixture"]["heldout"].items()
    start = next(row for row in read_metrics(workdir) if row["kind"] == "held_out")
    assert compared["start"]["heldout"]["loss"] == pytest.approx(
        start["heldout/loss"], abs=1e-5
    )
    for name in MODELS[1:]:
        gain = (
            compared[name]["heldout"]["accuracy"]
            - compared["start"]["heldout"]["accuracy"]
        )
        assert compared[name]["heldout"]["gain"] == pytest.approx(gain, abs=1e-12)
    assert "come from the held-out pairs" in said
    assert f"tpmm_jax.load_reward('{workdir}/merged/learned')" in "".join(
        line.strip() for line in said.splitlines()
    )
    page = (workdir / "report.html").read_text()
    for text in ("Merged back", "merged, learned", "Merge weights, gating"):
        assert text in page


def test_merged_models_are_ordinary_dense_ones(run):
    workdir, _ = run
    assert tpmm.load_reward(workdir).config.experts.count == 3
    record = read(workdir, "merged-learned.json")
    assert np.shape(record["weights"]) == (2, 3)
    assert record["pairs"] + record["pairs_held_out"] == 21
    gates = read(workdir, "merged-gating.json")["weights"]
    wanted = read(workdir, "router.json")["probability"]
    np.testing.assert_allclose(gates, wanted, atol=1e-6)
    model = tpmm.load_reward(workdir / "merged" / "uniform")
    assert model.config.experts is None
    mixture = tpmm.load_reward(workdir)
    dense = tpmm.merge_experts(mixture, "uniform")
    for ours, theirs in zip(
        *(sorted(m.params["layers"]["mlp"].items()) for m in (model, dense))
    ):
        np.testing.assert_array_equal(ours[1], theirs[1])
    lines = (workdir / "iterations/001/held_out.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    with np.load(workdir / "iterations/001/rewards-uniform.npz") as file:
        kept = file["rewards_heldout"]
    prompts = [pair["prompt"] for pair in pairs]
    answers = [[pair["chosen"], pair["rejected"]] for pair in pairs]
    assert np.shape(RewardScorer(model)(prompts, answers)) == kept.shape


class StopsBetween(StopFlag):
    """A flag that is raised once one file is there and another is not."""

    def __init__(self, there, missing):
        super().__init__()
        self.there, self.missing = there, missing

    @property
    def raised(self):
        return "SIGTERM" if self.there.exists() and not self.missing.exists() else None


def files(workdir):
    """All that the end of a run leaves but clocks and the digests' order, by name."""
    paths = [*(workdir / "iterations/001").iterdir(), workdir / "metrics.jsonl"]
    paths += (workdir / "merged").rglob("*.*")
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in paths
        if path.name != "digests.jsonl"
    }


def test_a_run_stopped_while_it_merges_goes_on_as_an_undisturbed_one(
    run, tmp_path, monkeypatch
):
    workdir, again = run[0], tmp_path / "umm"
    shutil.copytree(workdir, again)
    assert repair(again, lambda text: None, evaluate=1)
    folder = again / "iterations/001"
    assert not (again / "merged").exists() and not (folder / "router.json").exists()
    said = []
    for there, missing in (
        ("merged-gating.json", "merged-learned.json"),
        ("rewards-uniform.npz", "rewards-gating.npz"),
    ):
        flag = StopsBetween(folder / there, folder / missing)
        with monkeypatch.context() as patch:
            patch.setattr(
                "tpmm_jax.reward_runs.setup.Voice",
                lambda console, flag=flag: Voice(console, flag),
            )
            with pytest.raises(Stopped):
                go(again)
    kept = (folder / "rewards-uniform.npz").stat().st_mtime_ns
    said = go(again)
    assert "Bradley-Terry" not in said and "merge the experts" not in said
    assert (folder / "rewards-uniform.npz").stat().st_mtime_ns == kept
    assert files(again) == files(workdir)
    shutil.rmtree(again / "merged/uniform")
    assert "merge the experts, uniform" in go(again)
    assert files(again) == files(workdir)


def test_a_mixture_is_trained_further(run, tmp_path):
    workdir, _ = run
    tpmm.save(tpmm.load_reward(workdir), tmp_path / "moe")
    tiny_reward.go(
        tmp_path / "further",
        model=ModelSource(source=str(tmp_path / "moe"), remat=False),
        train=TrainConfig(learning_rate=3e-3, batch_size=8, epochs=1),
        merge=MergeBackConfig(rules=()),
    )
    tables = read(tmp_path / "further", "router.json")
    assert tables["start"] == "own"
    compared = read(tmp_path / "further", "summary.json")["compared"]
    assert list(compared) == ["mixture", "start"]
    before = read(workdir, "summary.json")["sets"]["heldout"]["loss"]
    assert compared["start"]["heldout"]["loss"] == pytest.approx(before, abs=1e-5)
    with pytest.raises(BadInput, match="is a mixture of experts already"):
        checked(
            tmp_path, model=ModelSource(source=str(tmp_path / "moe")), experts=EXPERTS
        )


def checked(folder, **changes):
    config = tiny_reward.get_config(**changes)
    config.validate()
    prepare(config, folder, RunConsole(io.StringIO()), started=False)


LORA = ModelSource(source="tiny_reward:build_model", lora=LoraConfig(rank=2))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"loss": RewardLossConfig(load_balance=0.1)}, "loss.load_balance is 0.1, but"),
        ({"loss": RewardLossConfig(z_loss=0.1)}, "loss.z_loss is 0.1, but the model"),
        ({"noise": NoiseConfig(jitter=0.1)}, "noise.jitter is 0.1, but the model has"),
        ({"merge": MergeBackConfig(steps=7)}, "merge.steps is 7, but the model has no"),
        ({"merge": MergeBackConfig(rules=("best",))}, "merge.rules is .*; use differ"),
        (
            {"merge": MergeBackConfig(rules=("gating",), steps=7)},
            "merge.steps is 7 has no meaning without",
        ),
        ({"merge": MergeBackConfig(learning_rate=0.0)}, "merge.learning_rate is 0.0"),
        ({"experts": EXPERTS, "model": LORA}, "model.lora.rank is set"),
        (
            {"experts": EXPERTS, "merge": MergeBackConfig(holdout=0.999)},
            "the pairs have 7 different prompts",
        ),
    ],
)
def test_settings_that_nothing_would_read_are_refused(changes, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        checked(tmp_path, **changes)
