"""The study of references: its grid, its stopping rule, its tests and its tables."""

import json
import pathlib
import sys

import numpy as np
import pytest

STUDY = pathlib.Path(__file__).parents[2] / "benchmarks" / "study"
sys.path.insert(0, str(STUDY))

import elsewhere  # noqa: E402
from analyse_references import (  # noqa: E402
    holm,
    p_value,
    primary_table,
    print_tables,
    questions,
    select,
)
from early_stopping import stopping_place  # noqa: E402
from flips import flipped  # noqa: E402
from references import (  # noqa: E402
    ARMS,
    EXPLORED,
    PRESSED,
    PRIMARY,
    RATES,
    STOPPED,
    TUNING_SEEDS,
    best_rates,
    choose,
    exploring_grid,
    fresh_grid,
    grid_of,
    offline_grid,
    smollm2_grid,
    tuning_grid,
)
from references_rows import unflipped_accuracy  # noqa: E402

import tpmm_jax.loop.rollouts as rollouts  # noqa: E402
from tpmm_jax.errors import BadInput  # noqa: E402
from tpmm_jax.rewards import make_pairs  # noqa: E402

# Where the made-up tuning rewards an arm most.
BEST = {"uniform": 5e-5, "learned": 2e-4, "sft": 4e-4}


def cell(phase: str, seed: int, arm: str, rate: float, last: float) -> dict:
    rewards = [0.4, 0.5, 0.7, 0.6, 0.6, 0.6, last]
    flat = {
        f"{prefix}{name}": [1.0] * 7
        for prefix in ("", "ship/")
        for name in ("kl/theta_0", "length/mean", "length/cut")
    }
    return {
        "phase": phase, "cell": f"seed_{seed}-arm_{arm}-rate_{rate:g}",
        "seed": str(seed), "arm": arm, "rate": rate, "failed": "",
        "reward/mean": rewards, "ship/reward/mean": [x - 0.1 for x in rewards], **flat,
        "vader": 0.5, "learned": [1, 4], "stopped_at": 2,
    }  # fmt: skip


def tuning() -> list[dict]:
    """Alike arms are best together at 1e-4; a cell of sft fails at its best rate."""
    found = []
    for seed in TUNING_SEEDS:
        for arm in ARMS:
            for rate in RATES[1:]:
                value = 0.69 if rate == BEST.get(arm, 1e-4) else 0.5
                if arm in ("uniform", "learned") and rate == 1e-4:
                    value = 0.65
                row = cell("tune", seed, arm, rate, value)
                # Stopped at theta_2 at the lowest rate alone.
                row["stopped_at"] = 2 if rate == 5e-5 else 6
                if (arm, rate, seed) == ("sft", 4e-4, TUNING_SEEDS[1]):
                    row["failed"] = "NaN"
                found.append(row)
    return found


def fresh(seeds: list[int]) -> list[dict]:
    rng, found = np.random.default_rng(0), tuning()
    best = best_rates(found)
    for seed in seeds:
        for arm in ARMS:
            rates = {best[arm], PRESSED} if arm in PRIMARY else {best[arm]}
            rates |= {best[STOPPED]} if arm == "previous" else set()
            for rate in sorted(rates):
                last = 0.5 + rng.normal(0, 0.05)
                found.append(cell("fresh", seed, arm, rate, last))
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


def test_rates_are_chosen_by_the_tuning() -> None:
    """Alike arms share the best of their mean; a failed cell rules a rate out."""
    rates = best_rates(tuning())
    assert rates["uniform"] == rates["learned"] == 1e-4
    assert rates["sft"] != 4e-4 and rates["best"] == 1e-4
    assert rates[STOPPED] == 5e-5
    assert choose(tuning())["peaks"][1e-4] == 2
    assert len(tuning_grid(RATES[1:]).cells()) == 84
    with pytest.raises(BadInput, match="run tune to its end first"):
        best_rates(tuning()[:-1])


def test_seeds_count_up_to_the_first_that_lacks_a_cell() -> None:
    some = fresh([200, 201, 203])
    assert list(select(some)["tuned"]["learned"]) == [200, 201]
    assert list(select(some[:-1])["pressed"][STOPPED]) == [200, 201]


def test_questions_are_the_registered_differences() -> None:
    studies = select(fresh([200, 201]))
    arms = studies["tuned"]
    found = questions(arms, 2)
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
    pressed = questions(studies["pressed"], 2)
    assert sum(q.startswith("4.") for q in pressed) == 2
    assert not any(q.startswith("6.") for q in pressed)


def test_equal_arms_are_told_as_equal() -> None:
    gaps = {"2. a": np.array([0.1, 0.2, 0.3]), "3. b": np.zeros(3), "4. c": np.ones(3)}
    assert "| +0.00 [+0.00, +0.00], within 0.10 | 0.00 | 3 of 3 | 1.000 |" in (
        primary_table(gaps)
    )


def test_tables_and_the_figure_are_made(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "cells.jsonl", tmp_path / "figure.png"
    some = fresh([200, 201, 202])
    some += [cell("explore", s, a, 1e-4, 0.5) for s in (200, 201) for a in EXPLORED]
    accuracies = {"accuracy": [0.5] * 7, "unflipped": [None, *[0.4] * 5, 0.7]}
    held_out = {f"heldout/{name}": values for name, values in accuracies.items()}
    some += [
        cell("offline", seed, arm, 1e-4, 0.5) | held_out | {"data": "hh"}
        for seed in (300, 301)
        for arm in ("previous", "sft")
    ]
    some += [cell("smollm2", s, a, 5e-5, 0.5) for s in (400, 401) for a in PRIMARY]
    some += [
        cell("elsewhere", seed, arm, 1e-4, last)
        for seed in (200, 201)
        for arm, last in (("previous", 0.5), ("sft", 0.7))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in some))
    print_tables(file, picture)
    said = capsys.readouterr().out
    assert "**tuned**, 3 seeds, 200 to 202" in said and "1.0 of 4" in said
    assert "| uniform |  | 0.69 | **0.65** | 0.50 | 0.50 |" in said
    assert "| learned_layers | 0.0001 | 2 | 0.50 |" in said
    assert (
        "| hh | sft | 0.0001 | 2 | 50.0 % | 70.0 % | +0.00 [+0.00, +0.00] | 45.0 %"
        in said
    )
    assert "**SmolLM2**" in said and "| sft | 5e-05 |" in said
    row = next(
        x for x in said.splitlines() if x.startswith("| sft | 0.0001 | 2 | 0.40 ")
    )
    assert row.endswith(
        "| 0.70 [0.70, 0.70] | +0.20 [+0.20, +0.20] | -0.10 [-0.10, -0.10] | 1.0 |"
    )
    assert picture.stat().st_size > 10_000
    file.write_text("")
    with pytest.raises(BadInput, match="has 0 whole seeds"):
        print_tables(file, picture)


def test_accuracy_without_flips(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "iterations/002"
    folder.mkdir(parents=True)
    # Training pairs, a flipped one that is right as it was, a right one, and a tie.
    pairs = [(False, True), (True, True), (True, False), (True, False)]
    lines = [json.dumps({"held_out": h, "flipped": f}) + "\n" for h, f in pairs]
    (folder / "pairs.jsonl").write_text("".join(lines))
    policy = np.array([[-3.0, -2.0], [-1.0, -2.0], [-2.0, -2.0]], np.float32)
    anchor = np.full_like(policy, -2.0)
    np.savez(folder / "held_out.npz", policy_MN=policy, theta_0_MN=anchor)
    assert unflipped_accuracy(tmp_path, 2) == pytest.approx(2.5 / 3)


def test_a_cell_is_evaluated_elsewhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stand_in(words: list[str]) -> int:
        asked.append(words)
        models = [
            {
                "reward/mean": reward, "kl/baseline": kl,
                "length/mean": 48.0, "length/cut": 1.0,
            }
            for reward, kl in ((0.1, 0.0), (0.8, 9.0), (0.6, 5.0))
        ]  # fmt: skip
        print(json.dumps({"models": models}))
        return 0

    monkeypatch.setattr(elsewhere.evaluate, "main", stand_in)
    (one,) = grid_of([200], {"sft": [5e-5]}, "mean").cells()
    file = tmp_path / "lines.jsonl"
    assert elsewhere.evaluate_and_keep(one, tmp_path, 6, file) is None
    folder = f"{tmp_path}/cells/{one.name}"
    wanted = [f"{folder}/{x}" for x in ("trajectory@0", "trajectory@6")]
    assert asked[0][:3] == [*wanted, f"{folder}/policy@mean..6"]
    row = json.loads(file.read_text())
    assert row["reward/mean"] == [0.1, 0.8] and row["ship/reward/mean"] == [0.1, 0.6]
    assert row["kl/theta_0"] == [0.0, 9.0] and row["rate"] == 5e-5
    monkeypatch.setattr(elsewhere.evaluate, "main", lambda words: 2)
    found = elsewhere.evaluate_and_keep(one, tmp_path, 6, file)
    assert found is not None and "ended with 2" in found


def test_fresh_cells_are_each_arm_at_its_own_rate_and_some_pressed() -> None:
    cells = fresh_grid(best_rates(tuning())).cells()
    first = [c for c in cells if c.levels["seed"] == "200"]
    assert cells[: len(first)] == first
    rates = {
        arm: {c.levels["rate"] for c in first if c.levels["arm"] == arm} for arm in ARMS
    }
    assert rates["previous"] == {"5e-05", "0.0001", "0.0002"}
    assert rates["learned"] == {"0.0001", "0.0002"} and rates["best"] == {"0.0001"}
    assert "ship=mean" in first[0].overrides


def test_every_exploratory_setting_is_a_valid_config(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "stories260k").mkdir(parents=True)
    monkeypatch.setenv("TPMM_ASSETS", str(tmp_path))
    grid = exploring_grid(best_rates(tuning()))
    loaded = {cell.name: grid.load(cell) for cell in grid.cells()}
    assert len(loaded) == 5 * len(EXPLORED)
    config = loaded["seed_200-arm_learned_512_held_out"]
    assert config.rollout.prompts_per_iteration == 704
    assert config.train.learning_rate == 1e-4
    files = {"hh": tmp_path / "hh.jsonl"}
    grid = offline_grid(files, best_rates(tuning()))
    assert all(grid.load(cell).offline for cell in grid.cells())
    grid = smollm2_grid()
    assert [grid.load(cell).iterations for cell in grid.cells()] == [4] * 8


@pytest.mark.parametrize(
    "name, training, held_out",
    [("training_flips", 0.4, 0), ("held_out_flips", 0, 0.4), ("poisoned", 1, 0.4)],
)
def test_labels_are_flipped_where_the_setting_says(
    name: str, training: float, held_out: float
) -> None:
    rewards = np.arange(800.0).reshape(400, 2)
    held = [place % 2 == 0 for place in range(400)]
    with flipped(f"learned_{name}"):
        pairs, _ = rollouts.make_pairs(rewards, held, 0.4, seed=[0, 3], labels="reward")
        other, _ = rollouts.make_pairs(rewards, held, 0.4, seed=[0, 2], labels="reward")
    assert rollouts.make_pairs is make_pairs
    for kind, wanted in ((False, training), (True, held_out)):
        shares = np.mean([pair.flipped for pair in pairs if pair.held_out == kind])
        assert abs(shares - wanted) < 0.1
    if name == "poisoned":
        assert 0.3 < np.mean([pair.flipped for pair in other]) < 0.5
