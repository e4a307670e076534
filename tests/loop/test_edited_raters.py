"""Scorers and judges that take liberties, or were edited between two starts."""

import dataclasses
import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tiny_run

from tpmm_jax import iterate
from tpmm_jax.commands import repair
from tpmm_jax.commands import train as command_line
from tpmm_jax.config import Config, EvaluationConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.log import sessions
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows, read_metrics
from tpmm_jax.loop import rescoring, setup
from tpmm_jax.loop.user_code import edited, source_digests
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.store.digests import unlist
from tpmm_jax.store.files import read_json

HERE = "test_edited_raters"
# What the functions below do, as a user's edits would change it.
EDIT: dict[str, Any] = {}


class Crash(BaseException):
    """What a kill is to the code."""


@pytest.fixture(autouse=True)
def unedited() -> None:
    EDIT.clear()


def odd_prompts() -> list[str]:
    return [f"w{2 * i + 1} w1 w3 w5 w7" for i in range(9)]


def score(prompts: Any, responses: Any) -> Any:
    """Looks at the whole batch, so that its shape matters."""
    found = tiny_run.score(prompts, responses)
    found = found - found.mean()
    if EDIT.get("hostile"):
        for some in responses:
            some.sort(key=len)
            some[:] = [text.strip().upper() for text in some]
        prompts.clear()
    return found * EDIT.get("score", 1.0) + EDIT.get("noise", 0.0)


def shortness(prompts: Any, responses: Any) -> Any:
    found = [[-float(len(text.split())) for text in texts] for texts in responses]
    if EDIT.get("hostile"):
        for some in responses:
            some.clear()
    return [[x + EDIT.get("short", 0.0) for x in row] for row in found]


def judge(prompts: Any, first: Any, second: Any) -> Any:
    a, b = (tiny_run.score(prompts, [[t] for t in x])[:, 0] for x in (first, second))
    if EDIT.get("hostile"):
        first.sort()
        second.clear()
    if "random" in EDIT:
        return EDIT["random"].random(len(a))
    return np.clip(0.6 + 0.4 * np.sign(a - b) * EDIT.get("judge", 1.0), 0, 1)


def get_config(iterations: int = 2, batch_size: int = 4, **more: Any) -> Config:
    evaluation = EvaluationConfig(
        num_prompts=6,
        sets={"odd": f"{HERE}:odd_prompts"},
        scorers={"short": f"{HERE}:shortness"},
        judges={"even": f"{HERE}:judge"},
        random=more.pop("random", ()),
    )
    config = tiny_run.get_config(
        iterations=iterations,
        reference=ReferenceConfig(rule="learned", fit="adam", steps=4, batch_size=8),
        evaluation=evaluation,
        scorer=ScorerConfig(name=f"{HERE}:score", **more),
    )
    rollout = dataclasses.replace(config.rollout, batch_size=batch_size)
    return dataclasses.replace(config, rollout=rollout)


def start(workdir: pathlib.Path, config: Config, rescore: bool = False) -> str:
    out = io.StringIO()
    command_line.run(config, workdir, RunConsole(out, out), rescore=rescore)
    return " ".join(out.getvalue().split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two iterations."""
    EDIT.clear()
    folder = tmp_path_factory.mktemp("rated") / "run"
    start(folder, get_config())
    return folder


@pytest.fixture
def copy(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def lines(workdir: pathlib.Path, t: int, name: str) -> list[dict[str, Any]]:
    path = workdir / "iterations" / f"{t:03d}" / name
    return [json.loads(line) for line in path.open()]


def content(workdir: pathlib.Path, pattern: str = "*/*") -> dict[str, bytes]:
    kept = [workdir / "metrics.jsonl", *workdir.glob(f"iterations/{pattern}")]
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(kept)
        if path.suffix != ".npz"
    }


def test_hostile_raters_move_nothing(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    EDIT["hostile"] = True
    start(tmp_path / "run", get_config())
    assert content(tmp_path / "run") == content(finished)


def test_an_unedited_start_is_not_refused_whatever_its_batches(
    copy: pathlib.Path,
) -> None:
    before = content(copy)
    for batch_size in (3, 5, 4):
        start(copy, get_config(batch_size=batch_size))
    # What another machine may round otherwise.
    EDIT["noise"] = 1e-5
    start(copy, get_config())
    assert content(copy) == before


def test_what_changed_without_a_difference_is_named(
    copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(copy)
    digests = {"scorer.name": "1", "evaluation.judges.even": "2", "data.prompts": "3"}
    monkeypatch.setattr(setup, "source_digests", lambda config, raters: digests)
    monkeypatch.setattr(sessions, "versions", lambda: {"jax": "0.1"})
    start(copy, get_config())
    monkeypatch.setattr(sessions, "versions", lambda: {"jax": "0.2"})
    digests = {**digests, "scorer.name": "4"}
    said = start(copy, get_config())
    assert "library versions changed since the last start: jax 0.1 → 0.2;" in said
    assert "the source file of scorer.name = test_edited_raters:score changed" in said
    assert "warning" not in start(copy, get_config())
    assert content(copy) == before
    # Whoever knows that other answers are concerned may say so.
    digests = {**digests, "evaluation.judges.even": "5", "data.prompts": "6"}
    said = start(copy, get_config(), rescore=True)
    assert "evaluation.judges.even was edited: it rates again" in said
    assert content(copy) == before
    rows = [json.loads(line) for line in (copy / "sessions.jsonl").open()]
    assert rows[-1]["rescored"] == ["evaluation.judges.even"]
    assert rows[-1]["sources"] == digests and not rows[-2]["rescored"]


def test_sources_are_the_files_of_functions(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scorer_in_a_file.py"
    path.write_text("def score(prompts, responses):\n    return 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(
        get_config(), scorer=ScorerConfig(name="scorer_in_a_file:score")
    )
    before = source_digests(config)
    names = {"scorer.name", "data.prompts", "evaluation.sets.odd"}
    names |= {"evaluation.scorers.short", "evaluation.judges.even"}
    assert before.keys() == names
    path.write_text(path.read_text().replace("0", "1"))
    assert edited(before, source_digests(config)) == ["scorer.name"]


@pytest.mark.parametrize(
    ("edit", "field", "way_out"),
    [
        ("score", r"scorer\.name = ", {"deterministic": False}),
        ("short", r"evaluation\.scorers\.short = ", {"random": ["short"]}),
        ("judge", r"evaluation\.judges\.even = ", {"random": ["even"]}),
    ],
)
def test_an_edited_rater_is_refused(
    copy: pathlib.Path, edit: str, field: str, way_out: dict[str, Any]
) -> None:
    before = content(copy)
    EDIT[edit] = -1.0
    with pytest.raises(BadInput, match=f"{field}(.|\n)* gave (.|\n)*--rescore") as said:
        start(copy, get_config(iterations=3))
    assert next(iter(way_out)) in str(said.value)
    assert content(copy) == before
    start(copy, get_config(**way_out))
    assert content(copy) == before


def test_judgements_of_answers_that_are_made_again_are_not_looked_at(
    copy: pathlib.Path,
) -> None:
    path = copy / "iterations" / "002" / "evaluation.jsonl"
    before = path.read_bytes()
    path.write_bytes(b"".join(before.splitlines(keepends=True)[1:]))
    assert repair.main([str(copy)]) == 0
    start(copy, get_config())
    assert path.read_bytes() == before


def test_a_random_judge_is_exempt_with_its_scorer_still_looked_at(
    copy: pathlib.Path,
) -> None:
    EDIT["random"] = np.random.default_rng(0)
    with pytest.raises(BadInput, match=r"evaluation\.random=\[\"even\"\]"):
        start(copy, get_config())
    start(copy, get_config(random=["even"]))
    start(copy, get_config(deterministic=False))
    EDIT["score"] = 2.0
    with pytest.raises(BadInput, match=r"scorer\.name = "):
        start(copy, get_config(random=["even"]))


def test_a_random_rater_is_refused_at_the_first_start(tmp_path: pathlib.Path) -> None:
    EDIT["random"] = np.random.default_rng(0)
    with pytest.raises(BadInput, match=r"evaluation\.judges\.even is asked twice"):
        start(tmp_path / "run", get_config())
    assert not (tmp_path / "run" / "trajectory" / "0").exists()


def crash_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, t: int) -> None:
    """Has a phase of an iteration crash once."""
    original = getattr(module, name)

    def crashing(*args: Any) -> Any:
        if args[3] == t:
            monkeypatch.setattr(module, name, original)
            raise Crash
        return original(*args)

    monkeypatch.setattr(module, name, crashing)


def test_an_edited_scorer_rates_again(
    copy: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As though its third iteration, too, had known nothing but the new scorer."""
    config, stopped = get_config(iterations=3), tmp_path / "stopped"
    shutil.copytree(copy, stopped)
    before = {name: content(copy, f"*/{name}*") for name in ("rollouts", "pairs")}
    crash_at(monkeypatch, iterate, "train", 3)
    with pytest.raises(Crash):
        start(stopped, config)
    old = lines(stopped, 3, "pairs.jsonl")
    logged = [(row["kind"], row["iteration"]) for row in read_metrics(copy)]
    seconds = [row.get("seconds") for row in iteration_rows(copy)]
    EDIT["score"] = -1.0

    said = start(copy, config, rescore=True)
    assert "scorer.name = test_edited_raters:score gives" in said
    for t in range(4):
        for name in ("evaluation.jsonl", "evaluation-odd.jsonl"):
            rows = lines(copy, t, name)
            for at in range(0, 6, 4):
                batch = rows[at : at + 4]
                wanted = score([], [row["responses"] for row in batch])
                found = [row["rewards"] for row in batch]
                np.testing.assert_allclose(found, wanted)
    for name, kept in before.items():
        kept.pop("metrics.jsonl")
        assert content(copy, f"00[12]/{name}*").items() >= kept.items()
    rows = iteration_rows(copy)
    assert [row.get("seconds") for row in rows[:3]] == seconds and all(seconds[1:])
    marks = [row.get("labels/earlier_scorer") for row in rows]
    assert marks == [None, 1, 1, None]
    kinds = [(row["kind"], row["iteration"]) for row in read_metrics(copy)]
    assert kinds[: len(logged)] == logged
    first = read_json(copy / "iterations/001/summary.json")
    assert first["labels/earlier_scorer"] == 1
    mean = np.mean([row["rewards"] for row in lines(copy, 2, "evaluation.jsonl")])
    np.testing.assert_allclose(rows[2]["reward/mean"], mean)
    assert read_json(copy / "raters.json")["earlier_labels"] == 2

    # The third iteration's answers were there already, rated by the old scorer; and
    # the first attempt to rate again is killed.
    crash_at(monkeypatch, rescoring, "summarise", 1)
    with pytest.raises(Crash):
        start(stopped, config, rescore=True)
    start(stopped, config)
    assert lines(stopped, 3, "pairs.jsonl") != old
    assert content(stopped, "*/*") == content(copy, "*/*")

    # Once done, the flag does nothing, and the old scorer is the edited one.
    assert not any("nan" in str(row.get("loss")) for row in rows)
    done = content(copy)
    said = start(copy, config, rescore=True)
    assert "says what it said" in said
    assert "all 3 iterations are done; --set iterations=4 adds one" in said
    assert content(copy) == done
    EDIT["score"] = 1.0
    with pytest.raises(BadInput, match=r"scorer\.name = "):
        start(copy, config)


def test_an_edited_judge_is_asked_again_and_no_label_moves(copy: pathlib.Path) -> None:
    before = content(copy)
    EDIT["judge"] = -1.0
    start(copy, get_config(), rescore=True)
    after = content(copy)
    moved = {name for name in before if before[name] != after[name]}
    of_each = {
        f"iterations/{t:03d}/{n}"
        for t in (1, 2)
        for n in ("judgements.jsonl", "summary.json", "metrics.jsonl", "digests.jsonl")
    }
    assert moved == {"metrics.jsonl", *of_each}
    for row in lines(copy, 2, "judgements.jsonl"):
        answers = lines(copy, 2, "evaluation.jsonl")
        theirs = lines(
            copy, 0 if row["against"] == "theta_0" else 1, "evaluation.jsonl"
        )
        if row["set"] == "evaluation":
            i = row["prompt"]
            texts = ([x[i]["responses"][row["sample"]]] for x in (answers, theirs))
            assert row["first"] == judge([answers[i]["prompt"]], *texts)[0]
    assert not any("labels/earlier_scorer" in row for row in iteration_rows(copy))


def test_a_kill_while_a_file_is_replaced(
    copy: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are drawn again, and all is as without the kill."""
    EDIT.update(score=-1.0, judge=-1.0)
    whole, original = tmp_path / "whole", rescoring.write_records
    shutil.copytree(copy, whole)
    start(whole, get_config(), rescore=True)

    def killed(path: pathlib.Path, rows: Any, **more: Any) -> None:
        if path.parent.name == "001":
            monkeypatch.setattr(rescoring, "write_records", original)
            unlist(path)
            raise Crash
        original(path, rows, **more)

    monkeypatch.setattr(rescoring, "write_records", killed)
    with pytest.raises(Crash):
        start(copy, get_config(), rescore=True)
    start(copy, get_config())
    found, wanted = (
        {k: v for k, v in content(folder).items() if "digests" not in k}
        for folder in (copy, whole)
    )
    assert found == wanted
