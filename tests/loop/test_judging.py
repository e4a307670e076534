"""What judges that are models leave behind: verdicts, words, and what is counted."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tiny_run
from tiny_run import start

from tpmm_jax.config import Config, EvaluationConfig
from tpmm_jax.data.records import Judgement, Rollout, parse_lines, to_line
from tpmm_jax.errors import BadInput
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.log.pair_counts import pair_counts
from tpmm_jax.loop import repeat
from tpmm_jax.loop.judged_labels import label_faults, label_warning
from tpmm_jax.loop.judging import (
    Contest,
    judge_batch,
    measure_contest,
    unread_warning,
)
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.report.gather import read_run
from tpmm_jax.report.judges import judge_sections
from tpmm_jax.rewards import NamedJudge, ScorerConfig, Verdicts
from tpmm_jax.scoring import JudgeConfig, ModelJudge, relative_warning
from tpmm_jax.scoring.judge_config import read_verdict
from tpmm_jax.weights.loading import load
from tpmm_jax.weights.saving import save


def stub(prompts: Any, first: Any, second: Any) -> Verdicts:
    """Finds "good" best and else prefers the first place; says nothing of "?"."""
    unread = ["?" in pair for pair in zip(first, second)]
    share = [
        0.5 if silent else float(a == "good" or b != "good")
        for a, b, silent in zip(first, second, unread)
    ]
    replies = ["hm" if s == 0.5 else "A" if s else "B" for s in share]
    return Verdicts(np.asarray(share), np.asarray(unread), replies)


def answers(*texts: str) -> list[Rollout]:
    return [
        Rollout(
            prompt=f"p{i}",
            responses=[text],
            held_out=True,
            prompt_ids=[3],
            response_ids=[[4, 1]],
        )
        for i, text in enumerate(texts)
    ]


def test_verdicts_are_kept_and_counted() -> None:
    contest = Contest(
        "evaluation", answers("good", "x", "?"), {"theta_0": answers("y", "y", "y")}
    )
    judge = NamedJudge("m (judge:m)", stub, digest="of the model")
    rows = judge_batch(contest, "theta_0", "m", judge, range(3))
    assert [row.win for row in rows] == [1.0, 0.5, 0.5]
    assert [row.unread for row in rows] == [0, 0, 2]
    assert [row.replies for row in rows] == [["A", "B"], ["A", "A"], ["hm", "hm"]]
    assert parse_lines(Judgement, map(to_line, rows), None) == rows
    values = measure_contest(contest, rows, {1})
    np.testing.assert_allclose(values["judge/m/win/theta_0"], 2 / 3)
    np.testing.assert_allclose(values["judge/m/disagreed"], 1 / 3)
    np.testing.assert_allclose(values["judge/m/unread"], 1 / 3)
    text = unread_warning({"theta_1": values}, "judgements.jsonl")
    assert "theta_1, judge m: 33 %" in text and "(judgements.jsonl)" in text
    assert unread_warning({"theta_1": {**values, "judge/m/unread": 0.2}}) == ""


def test_a_function_has_no_words() -> None:
    contest = Contest("evaluation", answers("a", "b"), {"theta_0": answers("c", "d")})
    judge = NamedJudge("f", lambda prompts, first, second: [0.9] * len(first))
    rows = judge_batch(contest, "theta_0", "f", judge, range(2))
    assert "unread" not in to_line(rows[0]) and "replies" not in to_line(rows[0])
    values = measure_contest(contest, rows, {1})
    assert values["judge/f/disagreed"] == 1 and "judge/f/unread" not in values


def test_equal_answers_do_not_disagree() -> None:
    contest = Contest("evaluation", answers("a", "b"), {"theta_0": answers("a", "c")})
    judge = NamedJudge("f", lambda prompts, first, second: [0.9] * len(first))
    rows = judge_batch(contest, "theta_0", "f", judge, range(2))
    assert measure_contest(contest, rows, {1})["judge/f/disagreed"] == 0.5


def test_what_a_judge_could_not_label_is_told() -> None:
    row = dataclasses.replace(
        answers("a")[0],
        responses=["a", "b", "b"],
        response_ids=[[4], [5], [5]],
        unread=["hm"],
        disagreed=1,
    )
    faults = label_faults([row])
    assert faults == {"labels/disagreed": 0.5, "labels/unread": 0.25}
    text = label_warning(faults, [row], "iteration 1")
    assert "iteration 1: 25 % of the judge's replies" in text and "'hm'" in text
    assert "50 % of verdicts turn with the order, 25 %" in pair_counts(faults)
    assert label_faults(answers("a")) == {} and label_warning({}, [], "x") == ""


def test_a_judge_that_labels_is_told_of() -> None:
    assert "reward/mean and win" in relative_warning(ScorerConfig(name="judge:m"))
    assert relative_warning(ScorerConfig(name="my:judge")) == ""
    assert relative_warning(ScorerConfig()) == ""


def other_model(folder: pathlib.Path) -> pathlib.Path:
    """The tests' causal model with other random weights."""
    model, directory = load(tiny_run._built()), folder / "other"
    params = model.decoder.init(jax.random.key(8))
    save(dataclasses.replace(model, params=params), directory)
    return directory


def get_config(folder: pathlib.Path) -> Config:
    return tiny_run.get_config(
        scorer=ScorerConfig(name=f"judge:{other_model(folder)}"),
        iterations=1,
        reference=ReferenceConfig(rule="learned", fit="adam", steps=4, batch_size=8),
        evaluation=EvaluationConfig(
            num_prompts=6, judges={"m": f"judge:{tiny_run._built()}"}
        ),
        judge=JudgeConfig(
            template_file=str(folder / "ask.txt"),
            first=[r"w\d*[02468]\b"],
            second=[r"w\d*[13579]\b"],
            tie=[],
            max_new_tokens=4,
        ),
    )


def test_a_run_is_judged_by_a_model(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, workdir = tmp_path / "ask.txt", tmp_path / "run"
    # A random model says again what it read last.
    ask.write_text("{prompt} w1 {first} w2 {second}", encoding="utf-8")
    config = get_config(tmp_path)
    start(config, workdir)
    path = workdir / "iterations/001/judgements.jsonl"
    rows = [json.loads(line) for line in path.open()]
    assert len(rows) == 6
    for row in rows:
        for share, reply in zip((row["first"], row["second"]), row["replies"]):
            found = read_verdict(config.judge, reply)
            assert share == (0.5 if found is None else found)
    measured = iteration_rows(workdir)[1]
    wins = np.mean([row["win"] for row in rows])
    np.testing.assert_allclose(measured["judge/m/win/theta_0"], wins)
    unread = np.mean([row["unread"] for row in rows]) / 2
    np.testing.assert_allclose(measured["judge/m/unread"], unread)
    assert 0 <= measured["judge/m/disagreed"] <= 1
    # One labels, in both orders, and does not measure.
    assert "reward/mean" not in measured and "win/theta_0" not in measured
    judge = ModelJudge(load(tmp_path / "other"), config.judge)
    path_of = workdir / "iterations/001/rollouts.jsonl"
    for line in path_of.open():
        row = json.loads(line)
        pairs = itertools.permutations(row["responses"], 2)
        shares = {
            pair: judge([row["prompt"]], *([x] for x in pair)).share_B[0]
            for pair in pairs
        }
        wins_of = [
            np.mean([
                (shares[a, b] + 1 - shares[b, a]) / 2 if a != b else 0.5
                for s, b in enumerate(row["responses"]) if s != r
            ])
            for r, a in enumerate(row["responses"])
        ]  # fmt: skip
        np.testing.assert_allclose(row["rewards"], wins_of)
    assert 0 < measured["labels/disagreed"] < 1 and measured["labels/unread"] < 1
    (section,) = judge_sections([read_run(workdir)])
    assert [panel.title for panel in section.panels] == [
        "Judges: the order decided (m)",
        "Judges: replies that cannot be read (m)",
        "Labels: the order decided",
        "Labels: replies that cannot be read",
    ]
    # A model is known by its digest, and not asked again.
    before = (workdir / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(repeat, "_changed_judge", lambda *_: 1 / 0)
        start(config, workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    # Another question is another judge.
    ask.write_text("{prompt} w1 {first} w3 {second}", encoding="utf-8")
    with pytest.raises(BadInput, match=r"judges\.m = .* or how it is asked"):
        start(config, workdir)
    start(config, workdir, rescore=True)
    again = [json.loads(line) for line in path.open()]
    places = [[row[k] for k in ("prompt", "sample", "against")] for row in again]
    assert places == [[row[k] for k in ("prompt", "sample", "against")] for row in rows]
    long = dataclasses.replace(
        config, judge=dataclasses.replace(config.judge, max_new_tokens=60)
    )
    with pytest.raises(BadInput, match=r"64 positions, and judging would take up to"):
        start(long, tmp_path / "long")
