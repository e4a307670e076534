"""One tiny run of tpmm train_reward with experts: upcycled, trained, told about."""

import json

import numpy as np
import pytest
import tiny_reward

from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.models.upcycling import UpcyclingConfig

EXPERTS = UpcyclingConfig(count=3, top_k=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, what was printed) of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("mixture") / "umm"
    return workdir, tiny_reward.go(workdir, experts=EXPERTS)


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
    tables = json.loads((workdir / "iterations/001/router.json").read_text())
    summary = json.loads((workdir / "iterations/001/summary.json").read_text())
    (best,) = (row for row in rows if row["step"] == summary["step"])
    assert tables["share"] == best["router/share"]
    assert summary["routers"]["router/from_start"] == best["router/from_start"]
    assert "routed experts: 2 of 3 a token; shares" in said
    page = (workdir / "report.html").read_text()
    assert "Share of each expert" in page and "Distances of experts" in page
