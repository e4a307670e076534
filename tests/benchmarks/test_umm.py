"""The UMM-RM study: its runs are valid and alike, its tables say what they should."""

import pathlib
import sys

import numpy as np
import pytest
import scipy.stats

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / name) for name in ("study", "umm")]

from analyse_umm import accuracies, clustered, curves  # noqa: E402
from arms import BACKBONES, DENSE, FILMS, LONGER, MEMBERS, run_grid  # noqa: E402

from tpmm_jax.config import flatten  # noqa: E402


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda one: one.name)
def test_runs_differ_from_the_baseline_in_what_their_name_says(
    backbone, tmp_path, monkeypatch
):
    monkeypatch.setenv("TPMM_ASSETS", str(tmp_path))
    monkeypatch.setenv("TPMM_RATINGS", str(tmp_path))
    runs = {DENSE: {}, **backbone.runs, **backbone.exploratory}
    grid = run_grid(tmp_path, backbone, runs, backbone.seeds[:1])
    found = {c.levels["arm"]: flatten(grid.load(c)) for c in grid.cells()}
    base = found.pop(LONGER)
    dense = found.pop(DENSE)
    differing = [k for k in {*base, *dense} if base.get(k) != dense.get(k)]
    measuring = ("model.source", "evaluation.every", "evaluation.sets")
    assert all(name.startswith(measuring) for name in differing)
    assert base["model.source"].endswith("seed_0-arm_dense/reward@best")
    for name, config in found.items():
        fields = {k for k in base if base[k] != config.get(k)}
        assert fields <= set(runs[name]) and fields, name
    orders = {found[name]["order_seed"] for name in MEMBERS}
    assert len(orders) == len(MEMBERS) and base["order_seed"] is None


def test_pairs_of_one_group_count_together():
    rng = np.random.default_rng(0)
    group_G = rng.normal(size=50)
    values_P = np.repeat(group_G, 6)
    found = clustered(values_P, np.repeat(np.arange(50), 6))
    assert found.mean == pytest.approx(group_G.mean())
    assert found.error == pytest.approx(scipy.stats.sem(group_G))
    low, high = scipy.stats.t.interval(
        0.95, 49, loc=group_G.mean(), scale=scipy.stats.sem(group_G)
    )
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def rewards(margin_P, pool_BN):
    pairs = np.stack([margin_P, np.zeros_like(margin_P)], axis=1)
    groups = np.arange(len(margin_P)) // 4
    return {"movie": pairs, "movie/group": groups, "pool": pool_BN}


def test_differences_are_paired_by_seed_and_curves_by_prompt():
    rng = np.random.default_rng(1)
    gold_BN = rng.normal(size=(20, 128))
    base = {s: rewards(rng.normal(size=80), gold_BN) for s in (0, 1)}
    better = {s: rewards(np.abs(x["movie"][:, 0]), -gold_BN) for s, x in base.items()}
    found = {LONGER: base, "learned": better, "2_of_8": {0: better[0]}}
    rows = accuracies(found, "movie")
    assert rows["learned"]["accuracy"]["mean"] == 1
    gaps = [1 - np.mean(x["movie"][:, 0] > 0) for x in base.values()]
    assert rows["learned"]["minus longer, by seed"] == pytest.approx(gaps)
    assert rows["2_of_8"]["minus longer, by seed"] == pytest.approx(gaps[:1])
    hacked = curves(found, gold_BN)
    assert hacked[LONGER]["row"]["correlation"] == pytest.approx(1)
    assert hacked[LONGER]["row"]["best"][0] == 64 and not hacked[LONGER]["row"]["down"]
    assert hacked["learned"]["row"]["down"]
    assert hacked["learned"]["row"]["minus longer"].high < 0
    assert FILMS.arms(1)[-1] == "shared_0.9/learned"
