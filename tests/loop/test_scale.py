"""A run whose labels come of several scorers: one scale, kept, and read again."""

import dataclasses
import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tiny_run

from tpmm_jax.commands import train as command_line
from tpmm_jax.config import Config, EvaluationConfig
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.loop import repeat, scale
from tpmm_jax.loop.margins import same_source_warning
from tpmm_jax.loop.user_code import source_digests
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import SCALE, MadpoConfig, ScorerConfig
from tpmm_jax.scoring import load_raters, load_scorer
from tpmm_jax.store.files import read_json

HERE = "test_scale"
EDIT: dict[str, float] = {}


class Crash(BaseException):
    """What a kill is to the code."""


@pytest.fixture(autouse=True)
def unedited() -> None:
    EDIT.clear()


def evenness(prompts: Any, responses: Any) -> Any:
    return 100 + EDIT.get("by", 7.0) * tiny_run.score(prompts, responses)


def shortness(prompts: Any, responses: Any) -> Any:
    return [[-float(len(text.split())) for text in texts] for texts in responses]


def get_config(iterations: int = 1, **scorer: Any) -> Config:
    fields: dict[str, Any] = {
        "name": (f"{HERE}:evenness", f"{HERE}:shortness"),
        "normalise": True,
        "clip": 1.5,
        "length_penalty": 0.01,
    }
    return tiny_run.get_config(
        iterations=iterations,
        reference=ReferenceConfig(rule="previous"),
        evaluation=EvaluationConfig(
            num_prompts=6, scorers={"short": f"{HERE}:shortness"}
        ),
        scorer=ScorerConfig(**{**fields, **scorer}),
    )


def start(workdir: pathlib.Path, config: Config, rescore: bool = False) -> str:
    out = io.StringIO()
    command_line.run(config, workdir, RunConsole(out, out), rescore=rescore)
    return " ".join(out.getvalue().split())


def lines(workdir: pathlib.Path, t: int, name: str) -> list[dict[str, Any]]:
    path = workdir / "iterations" / f"{t:03d}" / name
    return [json.loads(line) for line in path.open()]


def members(rows: list[dict[str, Any]]) -> np.ndarray:
    """What the two say, [2, B, R]."""
    texts = [row["prompt"] for row in rows], [row["responses"] for row in rows]
    return np.asarray([evenness(*texts), shortness(*texts)], np.float64)


def wanted(rows: list[dict[str, Any]], record: dict[str, Any]) -> np.ndarray:
    z = [
        np.clip((said - one["centre"]) / one["scale"], -1.5, 1.5)
        for said, one in zip(members(rows), record["members"], strict=True)
    ]
    tokens = [[len(ids) for ids in row["response_ids"]] for row in rows]
    return np.mean(z, axis=0) - 0.01 * np.asarray(tokens)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    EDIT.clear()
    folder = tmp_path_factory.mktemp("scaled") / "run"
    start(folder, get_config())
    return folder


@pytest.fixture
def copy(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def files(workdir: pathlib.Path) -> dict[str, bytes]:
    names = [SCALE, "metrics.jsonl"]
    names += [
        str(path.relative_to(workdir))
        for path in workdir.glob("iterations/*/*.jsonl")
        if path.name != "digests.jsonl"
    ]
    return {name: (workdir / name).read_bytes() for name in names}


def test_every_reward_of_the_run_goes_by_theta_0s_answers(finished):
    record = read_json(finished / SCALE)
    first = lines(finished, 0, "evaluation.jsonl")
    said = members(first).reshape(2, -1)
    found = [[one["centre"], one["scale"]] for one in record["members"]]
    np.testing.assert_allclose(found, np.stack([said.mean(1), said.std(1)], 1))
    assert record["answers"] == said.shape[1]
    assert [one["name"] for one in record["members"]] == list(get_config().scorer.names)
    for t, name in (
        (0, "evaluation.jsonl"),
        (1, "evaluation.jsonl"),
        (1, "rollouts.jsonl"),
    ):
        rows = lines(finished, t, name)
        rewards = [row["rewards"] for row in rows]
        np.testing.assert_allclose(rewards, wanted(rows, record), atol=1e-12)
        assert all(len(row["spread"]) == len(row["rewards"]) for row in rows)
    for row, t in zip(iteration_rows(finished), (0, 1), strict=True):
        spread = [one["spread"] for one in lines(finished, t, "evaluation.jsonl")]
        np.testing.assert_allclose(row["reward/spread"], np.mean(spread))
    assert "Spread of the reward" in (finished / "report.html").read_text()


def test_another_start_reads_the_scale_and_adds_iterations(copy):
    before = (copy / SCALE).read_bytes()
    assert "evenness" in start(copy, get_config(iterations=2))
    assert (copy / SCALE).read_bytes() == before
    rows = lines(copy, 2, "rollouts.jsonl")
    rewards = [row["rewards"] for row in rows]
    np.testing.assert_allclose(rewards, wanted(rows, json.loads(before)), atol=1e-12)


@pytest.mark.parametrize("place", ["write_listed_json", "rate_file"])
def test_a_run_that_is_killed_on_the_way_leaves_the_same_bytes(
    finished, tmp_path, monkeypatch, place
):
    with monkeypatch.context() as patched:

        def crash(*args: Any, **more: Any) -> None:
            raise Crash

        patched.setattr(scale, place, crash)
        with pytest.raises(Crash):
            start(tmp_path / "run", get_config())
    start(tmp_path / "run", get_config())
    assert files(tmp_path / "run") == files(finished)


def test_an_edited_member_is_refused_and_rates_again_by_a_scale_of_its_own(copy):
    EDIT["by"] = -3.0
    with pytest.raises(BadInput, match=r"scorer.name = mean of .*evenness.* gives"):
        start(copy, get_config())
    start(copy, get_config(), rescore=True)
    record = read_json(copy / SCALE)
    said = members(lines(copy, 0, "evaluation.jsonl")).reshape(2, -1)
    np.testing.assert_allclose(record["members"][0]["centre"], said[0].mean())
    for t in (0, 1):
        rows = lines(copy, t, "evaluation.jsonl")
        rewards = [row["rewards"] for row in rows]
        np.testing.assert_allclose(rewards, wanted(rows, record), atol=1e-12)
    # Finished iterations keep what they trained on, and are marked.
    assert iteration_rows(copy)[1]["labels/earlier_scorer"] == 1


def test_a_lost_or_edited_scale_is_refused(copy):
    path = copy / SCALE
    text = path.read_text()
    path.unlink()
    with pytest.raises(CorruptCheckpoint, match=r"scorer.json is missing"):
        start(copy, get_config())
    path.write_text(text.replace("1", "2"))
    with pytest.raises(CorruptCheckpoint, match=r"scorer.json"):
        start(copy, get_config())


def test_each_member_has_a_digest_and_all_are_one_scorer():
    names = [f"reward:{tiny_run.reward_model(seed)}" for seed in (0, 1)]
    config = get_config(name=(f"{HERE}:evenness", names[1]))
    raters = load_raters(config.scorer, {}, {})
    now = source_digests(config, raters)
    assert now["scorer.name[1]"] == raters.scorer.members[1].digest
    assert {"scorer.name[0]", "evaluation.scorers.short"} <= set(now)
    assert "scorer.name" not in now
    before = now | {"scorer.name[1]": "0" * 64}
    found = repeat._other_models(config, raters, before, now, {})
    assert list(found) == ["scorer.name"]
    assert f"scorer.name[1] = {names[1]} is another model" in found["scorer.name"]
    averaged = get_config(name=names, ensemble="weights", clip=None, normalise=False)
    raters = load_raters(averaged.scorer, {}, {})
    now = source_digests(averaged, raters)
    assert now["scorer.name"] == raters.scorer.members[0].digest
    before = now | {"scorer.name": "0" * 64}
    (text,) = repeat._other_models(averaged, raters, before, now, {}).values()
    assert all(name in text for name in names)


def test_a_member_that_gives_the_margins_is_warned_of():
    config, name = get_config(), f"{HERE}:evenness"
    config = dataclasses.replace(config, madpo=MadpoConfig(margins=name))
    raters = load_raters(config.scorer, {}, {})
    raters = dataclasses.replace(raters, margins=load_scorer(ScorerConfig(name=name)))
    assert "one of the scorers that label" in same_source_warning(config, raters)
    config = dataclasses.replace(config, madpo=MadpoConfig(margins="tiny_run:score"))
    assert not same_source_warning(config, raters)


def test_a_member_that_gives_one_reward_has_no_scale(tmp_path):
    EDIT["by"] = 0.0
    with pytest.raises(BadInput, match="evenness gives each of theta_0's"):
        start(tmp_path / "run", get_config())
