"""The study of references: its grid, its stopping rule, its tests and its tables."""

import json
import pathlib
import sys

import numpy as np
import pytest

STUDY = pathlib.Path(__file__).parents[2] / "benchmarks" / "study"
sys.path.insert(0, str(STUDY))

import references  # noqa: E402
from analyse_references import (  # noqa: E402
    holm,
    p_value,
    primary_table,
    print_tables,
    questions,
    select,
)
from early_stopping import stopping_place  # noqa: E402
from grid import Grid  # noqa: E402
from references import ARMS, PRESSED, STOPPED, fresh_grid, tuning_grid  # noqa: E402

from tpmm_jax.errors import BadInput  # noqa: E402
from tpmm_jax.log.console import RunConsole  # noqa: E402

RATES = {arm: 1e-4 for arm in ARMS} | {"uniform": PRESSED, "learned": PRESSED}


def cell(seed: int, arm: str, serves: list[list[str]], last: float) -> dict:
    rewards = [0.4, 0.5, 0.7, 0.6, 0.6, 0.6, last]
    mean = {f"ship/{name}": [x - 0.1 for x in rewards[1:]] for name in ("reward/mean",)}
    flat = {
        f"{prefix}{name}": [1.0] * (7 - (prefix != ""))
        for prefix in ("", "ship/")
        for name in ("kl/theta_0", "length/mean", "length/cut")
    }
    return {
        "seed": seed, "arm": arm, "rate": PRESSED, "serves": serves, "failed": "",
        "reward/mean": rewards, **mean, **flat, "vader": 0.5, "learned": [1, 4],
        "stopped_at": 2, "peak": 2,
    }  # fmt: skip


def rows(seeds: list[int]) -> list[dict]:
    rng = np.random.default_rng(0)
    found = []
    for seed in seeds:
        for arm in ARMS:
            serves = [[study, arm] for study in ("pressed", "tuned")]
            if arm == "previous":
                serves += [[study, STOPPED] for study in ("pressed", "tuned")]
            found.append(cell(seed, arm, serves, 0.5 + rng.normal(0, 0.05)))
    return found


def test_holm_is_step_down() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
    assert p_value(np.zeros(5)) == 1


def test_a_run_is_stopped_at_the_first_clear_fall_and_keeps_the_best() -> None:
    prompts = 40
    good, fair = [0.7] * prompts, [0.6, 0.7] * (prompts // 2)
    noise = (0.6 + 0.2 * np.random.default_rng(0).normal(size=prompts)).tolist()
    assert stopping_place([{1: fair}, {1: fair, 2: good}]) == 2
    assert (
        stopping_place([{1: good}, {1: good, 2: fair}, {1: fair, 2: fair, 3: good}])
        == 1
    )
    # Not by less than its error, nor by what another pool said.
    assert stopping_place([{1: good}, {1: noise, 2: [x + 1e-3 for x in noise]}]) == 2


def test_seeds_count_up_to_the_first_that_lacks_a_cell() -> None:
    some = rows([200, 201, 203])
    assert list(select(some)["tuned"]["learned"]) == [200, 201]
    assert list(select(some[:-1])["pressed"][STOPPED]) == [200, 201]


def test_questions_are_the_registered_differences() -> None:
    arms = select(rows([200, 201]))["tuned"]
    found = questions(arms)
    learned, previous = (
        np.array([c["reward/mean"][6] for c in arms[arm].values()])
        for arm in ("learned", "previous")
    )
    np.testing.assert_allclose(found["2. learned - previous"], learned - previous)
    # Stopped at theta_2, the peak.
    np.testing.assert_allclose(
        found["4. learned - previous, stopped early"], learned - 0.7
    )
    peak = next(q for q in found if q.startswith("1."))
    np.testing.assert_allclose(found[peak], previous - 0.7)
    np.testing.assert_allclose(found["5. sft: mean - theta_6"], -0.1)
    assert sum(q.startswith("4.") for q in found) == 3
    assert "6. learned - robust" in found and "6. dr_dpo - previous" in found


def test_equal_arms_are_told_as_equal() -> None:
    gaps = {"2. a": np.array([0.1, 0.2, 0.3]), "3. b": np.zeros(3), "4. c": np.ones(3)}
    assert "| +0.00 [+0.00, +0.00], within 0.10 | 0.00 | 3 of 3 | 1.000 |" in (
        primary_table(gaps)
    )


def test_tables_and_the_figure_are_made(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "cells.jsonl", tmp_path / "figure.png"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows([200, 201, 202])))
    print_tables(file, picture)
    said = capsys.readouterr().out
    assert "**tuned**, 3 seeds, 200 to 202" in said and "1.0 of 4" in said
    assert picture.stat().st_size > 10_000
    file.write_text("")
    with pytest.raises(BadInput, match="has 0 whole seeds"):
        print_tables(file, picture)


def test_fresh_cells_are_each_arm_pressed_and_at_its_own_rate(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(BadInput, match="run tune to its end first"):
        fresh_grid(tmp_path)
    chosen = {"rates": {**RATES, STOPPED: 5e-5}, "peaks": {}}
    (tmp_path / "chosen.json").write_text(json.dumps(chosen))
    cells = fresh_grid(tmp_path).cells()
    first = [c for c in cells if c.levels["seed"] == "200"]
    assert cells[: len(first)] == first
    rates = {
        arm: {c.levels["rate"] for c in first if c.levels["arm"] == arm} for arm in ARMS
    }
    assert rates["previous"] == {"5e-05", "0.0001", "0.0002"}
    assert rates["learned"] == {"0.0002"} and rates["sft"] == {"0.0001", "0.0002"}
    assert "ship=mean" in first[0].overrides


def test_every_exploratory_setting_is_a_valid_config(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "stories260k").mkdir(parents=True)
    monkeypatch.setenv("TPMM_ASSETS", str(tmp_path))
    (tmp_path / "chosen.json").write_text(json.dumps({"rates": RATES}))
    loaded = {}

    def kept(grid: Grid, *args: object) -> dict[str, str]:
        loaded.update({cell.name: grid.load(cell) for cell in grid.cells()})
        return {}

    monkeypatch.setattr(references, "run_study", kept)
    assert references.explore(tmp_path, 1, RunConsole()) == {}
    assert len(loaded) == 5 * len(references.EXPLORED)
    name = "seed_200-setting_learned_512_held_out-world_stories260k"
    assert loaded[name].rollout.prompts_per_iteration == 704
    assert loaded[name].train.learning_rate == PRESSED


def test_rates_are_chosen_by_the_tuning(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alike arms share the best of their mean; a failed cell rules a rate out."""
    best = {"uniform": 5e-5, "learned": 2e-4, "sft": 4e-4}

    def written(folder: pathlib.Path) -> list[dict]:
        name = folder.name
        arm, rate = name.split("arm_")[1].split("-rate_")
        if (arm, rate) == ("sft", "0.0004") and "seed_101" in name:
            return []
        high = float(rate) == best.get(arm, 1e-4)
        value = 0.9 if high else 0.5
        if arm in ("uniform", "learned") and float(rate) == 1e-4:
            value = 0.8
        return [{"reward/mean": x} for x in (0.4, 0.5, 0.95, 0.6, 0.6, 0.6, value)]

    monkeypatch.setattr(references, "iteration_rows", written)
    monkeypatch.setattr(references, "pooled_accuracies", lambda folder: folder)
    monkeypatch.setattr(
        references,
        "stopping_place",
        lambda folder: 2 if "rate_5e-05" in folder.name else 6,
    )
    found = references.choose(tmp_path)
    assert found["rates"]["uniform"] == found["rates"]["learned"] == 1e-4
    assert found["rates"]["sft"] != 4e-4 and found["rates"]["best"] == 1e-4
    assert found["rates"][STOPPED] == 5e-5
    assert found["peaks"]["0.0001"] == 2
    assert len(tuning_grid(references.RATES[1:]).cells()) == 84
