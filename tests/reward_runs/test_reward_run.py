"""One tiny run of tpmm train_reward: its files, its numbers, and its resume."""

import io
import json
import shutil

import numpy as np
import pytest
import tiny_reward
import tiny_run
from tiny_run import WORDS

from tpmm_jax.commands import check_data
from tpmm_jax.config import (
    Config,
    ModelSource,
    RewardConfig,
    RewardEvaluationConfig,
    load_config,
)
from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.errors import BadInput, NotFinite, Stopped, TpmmError
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.log.rewards import failure
from tpmm_jax.loop.repair import repair
from tpmm_jax.loop.safety import refuse_rewards
from tpmm_jax.loop.voice import StopFlag, Voice
from tpmm_jax.losses import RewardLossConfig
from tpmm_jax.report.page import write_report
from tpmm_jax.reward_runs import sets
from tpmm_jax.reward_runs.measuring import refuse_constant
from tpmm_jax.reward_runs.setup import prepare
from tpmm_jax.steps import TrainConfig
from tpmm_jax.store import Trajectory
from tpmm_jax.weights.loading import load_reward

go = tiny_reward.go


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, what was printed) of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("reward") / "rm"
    return workdir, go(workdir)


def test_it_learns_and_says_so(run):
    workdir, said = run
    summary = json.loads((workdir / "iterations/001/summary.json").read_text())
    assert summary["beats_chance"] and summary["temperature"] > 0
    assert summary["steps"] == 14
    held = summary["sets"]["heldout"]
    assert held["pairs"] == 21 and held["prompts"] == 7
    assert held["accuracy/low"] > 0.5 and held["best_of_4/choices"] == 7
    assert "choice" not in summary["sets"]["others"]
    assert any(
        line.startswith("held-out") and len(line) <= 80 for line in said.splitlines()
    )
    assert "does not beat chance" not in said


def test_the_newest_model_is_the_best(run):
    workdir, _ = run
    summary = json.loads((workdir / "iterations/001/summary.json").read_text())
    held = [row for row in read_metrics(workdir) if row["kind"] == "held_out"]
    assert [row["step"] for row in held] == [0, 4, 8, 12, 14]
    best = min(held, key=lambda row: row["heldout/loss"])
    assert summary["step"] == best["step"]
    with Trajectory(workdir / "reward", read_only=True) as trajectory:
        newest = trajectory.steps()[-1]
        assert newest == summary["kept"] >= 1
        assert trajectory.meta(newest)["loss"] == best["heldout/loss"]
    model = load_reward(f"{workdir}/reward@best")
    assert model.config.output == "reward"
    assert load_reward(workdir).origin == model.origin


def test_rows_have_trls_names(run):
    workdir, _ = run
    rows = [row for row in read_metrics(workdir) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(14))
    names = {"loss", "accuracy", "margin", "mean_reward", "grad_norm", "learning_rate"}
    assert names <= rows[0].keys()


def test_rewards_of_each_held_out_pair_give_the_accuracy(run):
    workdir, _ = run
    folder = workdir / "iterations/001"
    summary = json.loads((folder / "summary.json").read_text())
    for name, of_set in (("held_out", "heldout"), ("held_out-others", "others")):
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        right = [row["chosen_reward"] > row["rejected_reward"] for row in rows]
        assert np.mean(right) == pytest.approx(summary["sets"][of_set]["accuracy"])
        assert rows[0]["chosen"] and rows[0]["chosen_length"] > 0


class StopsAt(StopFlag):
    """A flag that is raised at the n-th look at it."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def raised(self):
        self.looks -= 1
        return "SIGTERM" if self.looks < 0 else None


def result(workdir):
    """All that a run leaves but clocks, by name."""
    names = ["metrics.jsonl", "iterations/001/summary.json", "data.json"]
    names += ["iterations/001/held_out.jsonl", "config.json"]
    return {name: (workdir / name).read_bytes() for name in names}


@pytest.mark.parametrize("looks", [2, 6])
def test_a_stopped_run_goes_on_as_an_undisturbed_one(looks, run, tmp_path, monkeypatch):
    workdir, _ = run
    with monkeypatch.context() as patch:
        patch.setattr(
            "tpmm_jax.reward_runs.setup.Voice",
            lambda console: Voice(console, StopsAt(looks)),
        )
        with pytest.raises(Stopped):
            go(tmp_path / "rm")
    assert not (tmp_path / "rm/iterations/001/summary.json").exists()
    go(tmp_path / "rm")
    assert result(tmp_path / "rm") == result(workdir)
    ours = Trajectory(tmp_path / "rm/reward", read_only=True)
    theirs = Trajectory(workdir / "reward", read_only=True)
    steps = ours.steps()
    assert steps == theirs.steps()
    assert [ours.digest(k) for k in steps] == [theirs.digest(k) for k in steps]


def test_a_finished_run_stays_as_it_is(run, tmp_path):
    workdir, _ = run
    shutil.copytree(workdir, tmp_path / "rm")
    before = result(tmp_path / "rm")
    assert "best after step" in go(tmp_path / "rm")
    assert result(tmp_path / "rm") == before


def test_it_ends_early_where_the_held_out_loss_does_not_fall(tmp_path):
    evaluation = RewardEvaluationConfig(holdout_fraction=0.3, every=2, patience=2)
    train = TrainConfig(learning_rate=1.0, batch_size=8, epochs=20)
    changes = {"evaluation": evaluation, "train": train}
    said = go(tmp_path / "rm", **changes)
    assert "2 evaluations without a lower held-out loss" in said
    rows = [row for row in read_metrics(tmp_path / "rm") if row["kind"] == "held_out"]
    losses = [row["heldout/loss"] for row in rows]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 and rows[-1]["step"] == 2 * len(rows) - 2 < 140
    summary = json.loads((tmp_path / "rm/iterations/001/summary.json").read_text())
    assert summary["step"] == rows[best]["step"]
    # What ended early is finished: the same command trains no further.
    before = result(tmp_path / "rm")
    assert "Bradley-Terry" not in go(tmp_path / "rm", **changes)
    assert result(tmp_path / "rm") == before


def test_a_step_that_is_not_finite_ends_it_and_leaves_no_best(tmp_path):
    train = TrainConfig(learning_rate=1e30, batch_size=8, epochs=2)
    for _ in range(2):
        with pytest.raises(NotFinite, match=r"step 1: .* is (nan|inf), because of .*:"):
            go(tmp_path / "rm", train=train)
        with Trajectory(tmp_path / "rm/reward", read_only=True) as trajectory:
            assert trajectory.steps() == [0]
    with pytest.raises(BadInput, match=r"no trained reward model.*reward@0"):
        load_reward(tmp_path / "rm")


def test_another_configuration_is_refused(run):
    workdir, _ = run
    with pytest.raises(BadInput, match=r"seed: was 0, is now 1"):
        go(workdir, seed=1)


def test_check_data_reads_and_splits_as_the_run(tmp_path, capsys):
    path = tmp_path / "of_reward.py"
    path.write_text("from tiny_reward import get_config\n")

    def check(*options):
        return check_data.main(["--config", str(path), *options]), capsys.readouterr()

    code, out = check("--json")
    found = json.loads(out.out)
    pairs = {name: facts["pairs"] for name, facts in found["sets"].items()}
    assert code == 0 and pairs == {"train": 51, "heldout": 21, "others": 6}
    assert found["steps"] == 14 and found["sets"]["heldout"]["prompts"] == 7
    code, out = check("--line", "1")
    assert code == 0 and "21 pairs of 7 prompts" in out.out and ":1" in out.out
    code, out = check("--max-length", "9")
    assert code == 2 and "--max-length is not for a reward model's" in out.err
    code, out = check("--set", 'data.fields={"chosen": "better"}')
    assert code == 2 and "field 'better' is missing" in out.err


def rows(prompts):
    return [PairRow([p], [1], [2], f"row {p}") for p in prompts]


def test_too_few_prompts_are_refused():
    some = [PairRow([1], [2], [3], group="a"), PairRow([1], [2], [4], group="a")]
    with pytest.raises(BadInput, match="2 pairs of fewer than 2 prompts train"):
        sets.refuse_few("p.jsonl", some, [])


def test_test_pairs_whose_prompt_trains_are_said(run, tmp_path):
    own, _ = tiny_reward.files()
    evaluation = RewardEvaluationConfig(holdout_fraction=0.3, sets={"same": own})
    config = tiny_reward.get_config(evaluation=evaluation)
    out = io.StringIO()
    plan, _ = prepare(config, tmp_path, RunConsole(out, width=80), started=False)
    shared = plan.sets.shared
    assert shared == {"heldout": 0, "same": len(plan.sets.train)}
    assert f"same: {shared['same']} of 72 pairs" in out.getvalue()


def test_sets_are_of_any_kind_and_texts_that_train_are_counted(tmp_path):
    texts = [" ".join(WORDS[n : n + 5]) for n in range(22)]
    rated = [{"text": text, "rating": n} for n, text in enumerate(texts)]
    other = {"text": "w1 w1 w1", "rating": 30}
    files = {
        "own": rated,
        "rated": [other, rated[3] | {"text": f" {texts[3]} "}],
        "told": [{"chosen": "w2 w2", "rejected": "w3 w3", "extra": 1}],
    }
    for name, rows in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(path)
    data = RewardDataConfig(ratings=files.pop("own"), pairs_per_text=1)
    files["asked"] = tiny_reward.files()[1]
    evaluation = RewardEvaluationConfig(holdout_fraction=0.3, sets=files)
    config = tiny_reward.get_config(
        data=data, evaluation=evaluation, loss=RewardLossConfig(use_margins=True)
    )
    config.validate()
    codec = make_codec(None, tiny_run.tokenizer(), data.reading())
    out = io.StringIO()
    found = sets.load_sets(config, codec, 64, tmp_path, RunConsole(out, width=80))
    trains = any(texts[3] in (x.pair.chosen, x.pair.rejected) for x in found.train)
    assert found.shared == {"heldout": 0, "rated": trains, "told": 0, "asked": 0}
    assert ("rated: 1 of 1 pairs have a text" in out.getvalue()) == trains
    assert found.tests["rated"][0].margin == 27 and len(found.tests["asked"]) == 6


def test_rows_longer_than_the_context_are_dropped_and_all_of_them_refused():
    said = []
    long = PairRow([1] * 9, [1], [2, 3])
    assert sets.fitting([long, *rows([1])], 5, said.append, "p") == rows([1])
    assert said == ["p: 1 pairs longer than 5 tokens dropped"]
    with pytest.raises(BadInput, match="every pair is longer"):
        sets.fitting([long], 5, said.append, "p")


def test_useless_rewards_are_refused_and_chance_is_no_result():
    with pytest.raises(TpmmError, match="same reward, 2"):
        refuse_constant({"heldout": np.full((3, 2), 2.0)})
    with pytest.raises(NotFinite, match="row 1"):
        refuse_rewards(np.array([[0.0, 1.0], [np.nan, 0.0]]), rows([0, 1]), "best")
    held = {"accuracy": 0.52, "accuracy/low": 0.45, "accuracy/high": 0.6, "pairs": 9}
    summary = {"beats_chance": False, "sets": {"heldout": held}}
    assert "does not beat chance: 52%" in failure(summary)
    assert failure({"beats_chance": True}) == ""


def test_the_page_shows_sets_curves_and_wrong_pairs(run):
    workdir, _ = run
    page = (workdir / "report.html").read_text()
    assert "A reward model, trained with tpmm_jax" in page
    for text in ("Reliability", "Reward against length", "others", "best model"):
        assert text in page
    with pytest.raises(BadInput, match="a comparison is of policies"):
        write_report([workdir, workdir])


def test_a_damaged_summary_is_made_again_without_training(run, tmp_path):
    workdir, _ = run
    shutil.copytree(workdir, tmp_path / "rm")
    path = tmp_path / "rm/iterations/001/summary.json"
    path.write_text(path.read_text().replace("kept", "lost"))
    said = []
    assert repair(tmp_path / "rm", said.append)
    assert "Bradley-Terry" not in go(tmp_path / "rm")
    assert result(tmp_path / "rm") == result(workdir)
    with pytest.raises(BadInput, match=r"--give-up is 1, but .* tpmm train_reward"):
        repair(tmp_path / "rm", said.append, give_up=1)


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("tiny_run", RewardConfig, "a Config, which is for tpmm train;"),
        ("tiny_reward", Config, "a RewardConfig, which is for tpmm train_reward;"),
    ],
)
def test_a_config_of_the_other_kind_names_its_command(name, kind, message, tmp_path):
    path = tmp_path / f"of_{name}.py"
    path.write_text(f"from {name} import get_config\n")
    with pytest.raises(BadInput, match=message):
        load_config(path, kind=kind)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": -1}, "seed is -1"),
        ({"model": ModelSource(source="x", logits_chunk_mib=8)}, "logits_chunk_mib"),
        *(
            ({"evaluation": RewardEvaluationConfig(**{name: value})}, message)
            for name, value, message in (
                ("holdout_fraction", 0.0, "between 0 and 1"),
                ("every", 0, "evaluation.every"),
                ("patience", 0, "evaluation.patience"),
                ("best_of", 2, "evaluation.best_of"),
                ("sets", {"pairs": "p.jsonl"}, "evaluation.sets.pairs"),
            )
        ),
    ],
)
def test_bad_fields_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        tiny_reward.get_config(**changes).validate()


def test_texts_without_a_prompt_or_bos_are_rows_of_a_reward_model():
    rows = [PairRow([], [5, 2], [6, 7, 2], margin=0.5), PairRow([1], [5, 2], [2])]
    table = sets.reward_table(rows, 64, 0)
    assert table["mask_BNT"].sum(-1).tolist() == [[2, 3], [3, 2]]
    assert table["margin_B"].tolist() == [0.5, 0.0]
