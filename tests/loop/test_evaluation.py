"""What the loop's evaluation writes: keys, files, agreement with the facade, resume."""

import dataclasses
import json
import math
import os
import pathlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny_run
from tiny_run import start

import tpmm_jax as tpmm
from tpmm_jax.config import Config, EvaluationConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.loop.rollouts import few_pairs_warning
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.store.digests import remove_listed
from tpmm_jax.store.files import read_json

HERE = "test_evaluation"
ASKED: Counter[str] = Counter()


def odd_prompts() -> list[str]:
    return [f"w{2 * i + 1} w1 w3 w5 w7" for i in range(9)]


def shortness(prompts: Any, responses: Any) -> Any:
    return [[-float(len(text.split())) for text in texts] for texts in responses]


def judge(prompts: Any, first: Any, second: Any) -> Any:
    """More even words; the first place gets a little more than it is due."""
    ASKED["judge"] += len(prompts)
    a, b = (tiny_run.score(prompts, [[t] for t in x])[:, 0] for x in (first, second))
    return np.clip(0.6 + 0.4 * np.sign(a - b), 0, 1)


def get_config(**changes: Any) -> Config:
    fields: dict[str, Any] = {
        "reference": ReferenceConfig(rule="learned", fit="adam", steps=4, batch_size=8),
        "evaluation": EvaluationConfig(
            num_prompts=6,
            samples_per_prompt=2,
            sets={"odd": f"{HERE}:odd_prompts"},
            scorers={"short": f"{HERE}:shortness"},
            judges={"even": f"{HERE}:judge"},
            max_kl_per_token=1e-6,
        ),
    }
    return tiny_run.get_config(**{**fields, **changes})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of two iterations with everything on."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    (folder.parent / "said.txt").write_text(start(get_config(), folder))
    return folder


def lines(workdir: pathlib.Path, t: int, name: str) -> list[dict[str, Any]]:
    path = workdir / "iterations" / f"{t:03d}" / name
    return [json.loads(line) for line in path.open()]


def test_the_agreed_keys(workdir: pathlib.Path) -> None:
    rows = iteration_rows(workdir)
    with_bounds = ["kl/theta_0", "heldout/accuracy"]
    for against in ("theta_0", "previous"):
        with_bounds += [f"win/{against}", f"odd/win/{against}"]
        with_bounds += [f"score/short/win/{against}", f"judge/even/win/{against}"]
    wanted = {f"{name}{end}" for name in with_bounds for end in ("", "/low", "/high")}
    for head in ("reward", "odd/reward", "score/short", "odd/score/short"):
        wanted |= {f"{head}/{end}" for end in ("mean", "low", "high")}
    wanted |= {"kl/reference", "heldout/margin", "distinct/1", "distinct/2"}
    wanted |= {"length/mean", "odd/kl/reference", "odd/judge/even/win/theta_0"}
    for row in rows[1:]:
        assert wanted <= row.keys()
        for name in row:
            if "win/" in name or "accuracy" in name:
                assert 0 <= row[name] <= 1
            if name.endswith("/low"):
                head = name.removesuffix("/low")
                mean = row.get(head, row.get(f"{head}/mean"))
                assert row[name] <= mean <= row[f"{head}/high"]
        assert read_json(workdir / f"iterations/{row['iteration']:03d}/summary.json")
    assert rows[0]["kl/theta_0"] == 0 and "win/theta_0" not in rows[0]
    for name in ("win", "judge/even/win", "odd/win"):
        assert rows[1][f"{name}/previous"] == rows[1][f"{name}/theta_0"]
    assert "nats per token" in rows[2]["watch"][0]
    assert any(text.startswith("odd: ") for text in rows[2]["watch"])


def test_rows_of_answers_and_judgements(workdir: pathlib.Path) -> None:
    for name, count in (("evaluation", 6), ("evaluation-odd", 6)):
        rows = lines(workdir, 1, f"{name}.jsonl")
        assert len(rows) == count
        for row in rows:
            wanted = shortness([row["prompt"]], [row["responses"]])[0]
            assert row["scores"] == {"short": wanted}
    # At iteration 1 the previous policy is theta_0, which is judged once.
    assert len(lines(workdir, 1, "judgements.jsonl")) == 2 * 6 * 2
    rows = lines(workdir, 2, "judgements.jsonl")
    assert len(rows) == 2 * 2 * 6 * 2
    ours, theirs = (lines(workdir, t, "evaluation-odd.jsonl") for t in (2, 1))
    for row in rows:
        assert row["win"] == (row["first"] + 1 - row["second"]) / 2
        if row["set"] == "odd" and row["against"] == "previous":
            i, s = row["prompt"], row["sample"]
            texts = [ours[i]["responses"][s]], [theirs[i]["responses"][s]]
            assert row["first"] == judge([ours[i]["prompt"]], *texts)[0]
    rows = [r for r in rows if r["set"] == "evaluation" and r["against"] == "theta_0"]
    mean = iteration_rows(workdir)[2]["judge/even/win/theta_0"]
    np.testing.assert_allclose(np.mean([row["win"] for row in rows]), mean)


def cut(rows: list[dict[str, Any]]) -> float:
    ids = [ids for row in rows for ids in row["response_ids"]]
    assert all(len(i) == 8 or i[-1] == 1 for i in ids)
    return float(np.mean([i[-1] != 1 for i in ids]))


def test_counts_of_pairs_and_of_cut_answers(workdir: pathlib.Path) -> None:
    said = (workdir.parent / "said.txt").read_text()
    for row in iteration_rows(workdir)[1:]:
        t = row["iteration"]
        pairs, rollouts = (
            lines(workdir, t, f"{n}.jsonl") for n in ("pairs", "rollouts")
        )
        assert row["pairs/train"] == sum(not pair["held_out"] for pair in pairs)
        assert row["pairs/held_out"] == sum(pair["held_out"] for pair in pairs)
        tied = sum(len(set(rollout["rewards"])) == 1 for rollout in rollouts)
        assert row["pairs/tied_prompts"] == tied and row["pairs/dropped"] == 0
        assert row["rollout/cut"] == cut(rollouts)
        for head, name in (("", "evaluation"), ("odd/", "evaluation-odd")):
            assert row[f"{head}length/cut"] == cut(lines(workdir, t, f"{name}.jsonl"))
        train, held_out = row["pairs/train"], row["pairs/held_out"]
        counts = f"{train} train (one a prompt), {held_out} held out (every two answers"
        assert f"iteration {t}: pairs: {counts}" in said
        assert f"pairs of iteration {t}: {train} train" in said
        share = f"{100 * row['rollout/cut']:.0f} %"
        assert f", {share} of the answers cut" in said
    # Once for all iterations.
    assert said.count("answers cut at 8 tokens: iteration 1: ") == 1
    assert said.count("answers cut at 8 tokens: evaluation of theta_0: ") == 1
    assert said.count("warning: answers cut at") == 2


def test_few_prompts_that_give_pairs_are_warned_of() -> None:
    assert few_pairs_warning(6, 12, "iteration 1") == ""
    said = few_pairs_warning(5, 12, "iteration 1")
    assert said.startswith("iteration 1: only 5 of 12 prompts gave a pair")


def log_prob(model: tpmm.Model, prompt: list[int], ids: list[int]) -> float:
    tokens = np.asarray([[*prompt, *ids]], np.int32)
    logp = np.asarray(tpmm.log_probs(model, tokens, np.ones_like(tokens)))
    return float(logp[0, len(prompt) - 1 :].sum())


def test_log_probs_and_kl_are_those_of_the_facade(workdir: pathlib.Path) -> None:
    weights = read_json(workdir / "iterations/002/reference.json")["weights"][0]
    steps = [f"{workdir}/trajectory@{k}" for k in (0, 1, 2)]
    models = [tpmm.load(step) for step in steps]
    models.append(tpmm.merge(steps[:2], weights))
    pairs = [r for r in lines(workdir, 2, "pairs.jsonl") if r["held_out"]]
    names = ("theta_0", None, "policy", "reference")
    with np.load(workdir / "iterations/002/held_out.npz") as file:
        for name, model in zip(names, models):
            if name is None:
                continue
            found_MN = file[f"{name}_MN"]
            assert found_MN.shape == (len(pairs), 2) and found_MN.dtype == np.float32
            for m in (0, len(pairs) - 1):
                for n, side in enumerate(("chosen_ids", "rejected_ids")):
                    ids = pairs[m]["prompt_ids"], pairs[m][side]
                    wanted = log_prob(model, *ids)
                    np.testing.assert_allclose(found_MN[m, n], wanted, atol=1e-4)
    row = iteration_rows(workdir)[2]
    for key, model in (("kl/theta_0", models[0]), ("kl/reference", models[3])):
        ratios = [
            log_prob(models[2], r["prompt_ids"], ids)
            - log_prob(model, r["prompt_ids"], ids)
            for r in lines(workdir, 2, "evaluation.jsonl")
            for ids in r["response_ids"]
        ]
        np.testing.assert_allclose(row[key], np.mean(ratios), atol=1e-4)


def test_sessions(workdir: pathlib.Path) -> None:
    start(get_config(), workdir)
    first, *_, last = [json.loads(x) for x in (workdir / "sessions.jsonl").open()]
    assert not first["resumed"] and first["next_iteration"] == 0
    assert last["resumed"] and last["next_iteration"] == 3
    assert last["time"] >= first["time"] and last["command"].startswith("python ")
    assert {"python", "jax", "tpmm_jax", "numpy"} <= last["versions"].keys()
    assert last["devices"] == "8 x cpu"


class Crash(BaseException):
    """What a kill is to the code."""


def content(workdir: pathlib.Path) -> dict[str, bytes]:
    kept = [workdir / "metrics.jsonl", *workdir.glob("iterations/*/*")]
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in kept
        if path.suffix != ".npz"
    }


@pytest.mark.parametrize(
    "share",
    [0.1, 0.6, 0.95, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.3, 0.8))],
)
def test_a_crash_inside_the_last_evaluation(
    workdir: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """Each phase continues from its file; no judge is asked again."""
    import shutil

    count, stop_at = 0, -1

    fsync = os.fsync

    def counted(descriptor: int) -> None:
        """Every write of a small file ends in one, and is taken back if it fails."""
        nonlocal count
        count += 1
        if count == stop_at:
            raise Crash
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)

    def evaluate_again(folder: pathlib.Path) -> None:
        shutil.copytree(workdir, folder)
        for path in (folder / "iterations" / "002").iterdir():
            kept = ("rollouts", "pairs", "reference", "held_out_logps")
            if not path.name.startswith((*kept, "digests", "metrics")):
                remove_listed(path)

    evaluate_again(tmp_path / "whole")
    start(get_config(), tmp_path / "whole")
    assert content(tmp_path / "whole") == content(workdir)
    total, count, stop_at = count, 0, 0
    stop_at = max(1, round(share * total))
    evaluate_again(tmp_path / "crashed")
    ASKED.clear()
    with pytest.raises(Crash):
        start(get_config(), tmp_path / "crashed")
    count, stop_at = 0, -1
    start(get_config(), tmp_path / "crashed")
    assert content(tmp_path / "crashed") == content(workdir)
    # Of both starts a probe and one stored batch in both orders, to see whether the
    # judge was edited; and at most one batch of both orders asked anew.
    at_starts = 2 * (3 + 2 * 4 * 2)
    assert ASKED["judge"] <= 2 * 2 * 2 * 6 * 2 + at_starts + 2 * 4 * 2


def test_a_run_from_before_goes_on(tmp_path: pathlib.Path) -> None:
    config = tiny_run.get_config(iterations=1)
    start(config, tmp_path)
    path = tmp_path / "config.json"
    old = read_json(path)
    for name in (
        "sets", "scorers", "judges", "max_kl_per_token", "max_length_ratio"
    ):  # fmt: skip
        del old["evaluation"][name]
    path.write_text(json.dumps(old))
    start(dataclasses.replace(config, iterations=2), tmp_path)
    assert "win/previous" in iteration_rows(tmp_path)[2]


def one_number(prompts: Any, first: Any, second: Any) -> Any:
    return 0.5


def too_much(prompts: Any, first: Any, second: Any) -> Any:
    return [1.5 for _ in prompts]


def not_a_number(prompts: Any, first: Any, second: Any) -> Any:
    return [math.nan for _ in prompts]


def words(prompts: Any, first: Any, second: Any) -> Any:
    return ["first" for _ in prompts]


def fails(prompts: Any, first: Any, second: Any) -> Any:
    raise TimeoutError("no answer")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one_number", r"careful \(test_evaluation:one_number\) returned shape \(\)"),
        ("too_much", "returned 1.5 for prompt"),
        ("not_a_number", "returned nan for prompt"),
        ("words", "not an array of numbers"),
        ("fails", "raised TimeoutError: no answer"),
        ("absent", "evaluation.judges.careful = .* has no function absent"),
    ],
)
def test_judges_are_tried_first(tmp_path: pathlib.Path, name: str, said: str) -> None:
    judges = {"careful": f"{HERE}:{name}"}
    config = get_config(evaluation=EvaluationConfig(num_prompts=6, judges=judges))
    with pytest.raises(BadInput, match=said):
        start(config, tmp_path)
    assert not (tmp_path / "trajectory" / "0").exists()


def test_further_scorers_are_tried_first(tmp_path: pathlib.Path) -> None:
    scorers = {"bad": f"{HERE}:one_number"}
    config = get_config(evaluation=EvaluationConfig(num_prompts=6, scorers=scorers))
    with pytest.raises(BadInput, match="scorer bad"):
        start(config, tmp_path)


def test_further_sets_are_checked_and_pinned(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"prompt": "w1 w3"}\n')
    config = tiny_run.get_config(
        iterations=1,
        evaluation=EvaluationConfig(num_prompts=4, sets={"odd": str(path)}),
    )
    with pytest.raises(BadInput, match="holds 1 prompts"):
        start(config, tmp_path / "run")
    long = " ".join(["w1"] * 30)
    path.write_text(f'{{"prompt": "w1 w3"}}\n{{"prompt": "{long}"}}\n')
    data = dataclasses.replace(config.data, max_prompt_length=40)
    config = dataclasses.replace(config, data=data)
    start(config, tmp_path / "run")
    row = iteration_rows(tmp_path / "run")[1]
    assert "odd/reward/mean" in row and "odd/kl/reference" in row
    path.write_text('{"prompt": "w1 w3"}\n{"prompt": "w5"}\n')
    with pytest.raises(BadInput, match="prompts changed since"):
        start(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sets": {"reward": "x"}}, "sets.reward: there are metrics of that name"),
        ({"sets": {"a/b": "x"}}, "letters, digits"),
        ({"judges": {"": "m:f"}}, "letters, digits"),
        ({"max_kl_per_token": 0.0}, "max_kl_per_token is 0.0"),
        ({"max_length_ratio": 1.0}, "max_length_ratio is 1.0"),
    ],
)
def test_config_values(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        EvaluationConfig(**changes).validate()


def test_offline_needs_prompts_for_sets() -> None:
    config = tiny_run.get_config(
        data=DataConfig(pairs="pairs.jsonl"),
        scorer=ScorerConfig(),
        evaluation=EvaluationConfig(judges={"even": f"{HERE}:judge"}),
    )
    with pytest.raises(BadInput, match=r"evaluation\.judges needs prompts"):
        config.validate()
