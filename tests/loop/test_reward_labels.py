"""A run whose labels, margins and further scores are given by reward models."""

import dataclasses
import io
import json
import shutil

import pytest
import tiny_run

from tpmm_jax.commands import train as command_line
from tpmm_jax.config import EvaluationConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.losses import LossConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import MadpoConfig, PairingConfig, ScorerConfig

FIELDS = {"label": "scorer.name", "more": "evaluation.scorers.more"}
FIELDS["weigh"] = "madpo.margins"


def judge(prompts, first, second):
    a, b = (tiny_run.score(prompts, [[t] for t in x])[:, 0] for x in (first, second))
    return 0.5 + 0.5 * ((a > b).astype(float) - (a < b))


def get_config(folder, **changes):
    return tiny_run.get_config(
        **{
            "iterations": 1,
            "scorer": ScorerConfig(name=f"reward:{folder}/label"),
            "loss": LossConfig(name="madpo"),
            "madpo": MadpoConfig(margins=f"reward:{folder}/weigh"),
            "pairing": PairingConfig(
                holdout_fraction=0.3, labels="bt", margins="relabel"
            ),
            "reference": ReferenceConfig(rule="trust_region", trust_region_tau=2),
            "evaluation": EvaluationConfig(
                num_prompts=6,
                scorers={"more": f"reward:{folder}/more"},
                judges={"even": "test_reward_labels:judge"},
            ),
            **changes,
        }
    )


def start(config, workdir):
    out = io.StringIO()
    command_line.run(config, workdir, RunConsole(out, out))
    return out.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the reward models' folder, workdir) of a finished run."""
    folder = tmp_path_factory.mktemp("rewards")
    for seed, name in enumerate(FIELDS):
        shutil.copytree(tiny_run.reward_model(seed, 9.0), folder / name)
    start(get_config(folder), folder / "run")
    return folder, folder / "run"


def test_reward_models_label_weigh_and_watch(run):
    folder, workdir = run
    rows = [row for row in read_metrics(workdir) if row["kind"] == "iteration"]
    assert [row["iteration"] for row in rows] == [0, 1]
    for name in ("reward/mean", "score/more/mean"):
        assert all(name in row for row in rows)
    assert "judge/even/win/theta_0" in rows[-1] and rows[-1]["madpo/weight"] > 0
    session = json.loads((workdir / "sessions.jsonl").read_text().splitlines()[-1])
    assert {*FIELDS.values()} <= session["sources"].keys()
    page = (workdir / "report.html").read_text()
    assert "Margins of the rewards" in page and f"reward:{folder}/label" in page
    # A finished run is left as it is.
    before = (workdir / "metrics.jsonl").read_bytes()
    assert "finished before" in start(get_config(folder), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_another_model_under_the_same_name_is_refused(run, name, deterministic):
    folder, workdir = run
    config = get_config(folder, iterations=2)
    # Whoever says that raters are random is told of another model all the same.
    scorer = dataclasses.replace(config.scorer, deterministic=deterministic)
    config = dataclasses.replace(config, scorer=scorer)
    (folder / name).rename(folder / "kept")
    shutil.copytree(tiny_run.reward_model(7, 9.0), folder / name)
    try:
        with pytest.raises(BadInput) as caught:
            start(config, workdir)
    finally:
        shutil.rmtree(folder / name)
        (folder / "kept").rename(folder / name)
    said = str(caught.value)
    assert f"{FIELDS[name]} = " in said and f"reward:{folder}/{name}" in said
    assert ("is another model than at the last start" in said) != deterministic
    assert sum(f"{field} = " in said for field in FIELDS.values()) == 1
