"""A reference that is a mixture of policies' log-probs: nothing is merged."""

import dataclasses
import io
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import start

from tpmm_jax.config import Config
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.log_probs import pair_table
from tpmm_jax.loop.rollouts import read_pairs
from tpmm_jax.loop.setup import open_run
from tpmm_jax.losses import LossConfig, pair_log_probs
from tpmm_jax.merging import ReferenceConfig, weighted_sum
from tpmm_jax.store.digests import read_npz

REFERENCE = ReferenceConfig(rule="uniform", anchor_share=0.5, mix="log_probs")


def config(**changes: Any) -> Config:
    fields = {"iterations": 3, "reference": REFERENCE, **changes}
    return tiny_run.get_config(**fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("mixture") / "run"
    start(config(), workdir)
    return workdir


def test_log_probs_are_the_weighted_sum_of_the_policies(run: pathlib.Path) -> None:
    record = json.loads((run / "iterations/003/reference.json").read_text())
    assert record["weights"] == [[0.5, 0.25, 0.25]]
    assert record["signal_to_rounding"] is None and not (run / "scratch").exists()
    kept = read_npz(run / "iterations/003/reference_logps.npz")["logps_MN"]
    held = read_npz(run / "iterations/003/held_out.npz")["reference_MN"]
    out = io.StringIO()
    with open_run(config(), run, RunConsole(out, out)) as opened:
        pairs = read_pairs(opened.disk, 3)
        for rows, found in ((pairs.train, kept), (pairs.held_out, held)):
            table = pair_table(opened.plan.runner, rows)
            batch = {name: jnp.asarray(x) for name, x in table.items()}
            wanted = sum(
                weight
                * pair_log_probs(opened.plan.decoder, opened.disk.policy(k), batch)
                for k, weight in enumerate(record["weights"][0])
            )
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_to_first_order_the_mixture_is_the_merge(run: pathlib.Path) -> None:
    """Halving what the policies changed quarters the difference of the two."""
    out, errors = io.StringIO(), []
    with open_run(config(), run, RunConsole(out, out)) as opened:
        rows = read_pairs(opened.disk, 3).held_out
        table = pair_table(opened.plan.runner, rows)
        batch = {name: jnp.asarray(x) for name, x in table.items()}
        first = opened.disk.policy(0)
        for size in (0.5, 0.25):
            policies = [
                jax.tree.map(
                    lambda x, y, size=size: x + size * (y - x),
                    first,
                    opened.disk.policy(k),
                )
                for k in range(3)
            ]
            merged, _ = weighted_sum(policies, [0.5, 0.25, 0.25])
            logps = [
                np.asarray(pair_log_probs(opened.plan.decoder, p, batch), np.float64)
                for p in (merged, *policies)
            ]
            mixture = 0.5 * logps[1] + 0.25 * logps[2] + 0.25 * logps[3]
            errors.append(np.abs(logps[0] - mixture).mean())
    assert errors[1] > 1e-5, "too near to rounding to say anything"
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.2)


@pytest.mark.slow
def test_a_learned_mixture_of_lora_resumes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpmm_jax.loop import reference
    from tpmm_jax.models import LoraConfig

    class Crash(BaseException):
        pass

    source = dataclasses.replace(config().model, lora=LoraConfig(rank=2))
    learned = ReferenceConfig(rule="learned", mix="log_probs")
    made = config(model=source, reference=learned)
    start(made, tmp_path / "whole")
    check, calls = reference.self_check, []

    def crashing(*args: Any) -> None:
        calls.append(None)
        if len(calls) == 5:
            raise Crash
        check(*args)

    with monkeypatch.context() as patch:
        patch.setattr(reference, "self_check", crashing)
        with pytest.raises(Crash):
            start(made, tmp_path / "again")
    start(made, tmp_path / "again")
    for path in (tmp_path / "whole").glob("iterations/*/*"):
        again = tmp_path / "again" / path.relative_to(tmp_path / "whole")
        assert again.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"loss": LossConfig(name="bco")}, "sees more of the reference"),
        ({"loss": LossConfig(name="ipo")}, "sees more of the reference"),
        (
            {"reference": ReferenceConfig(rule="sft", mix="log_probs")},
            "rule 'sft' has none",
        ),
        (
            {
                "reference": ReferenceConfig(
                    rule="learned", fit="exact", granularity="layer", mix="log_probs"
                )
            },
            "weights of layers",
        ),
    ],
)
def test_what_has_no_mixture_is_refused(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(BadInput, match=wanted):
        config(**changes).validate()
    ipo = LossConfig(name="ipo", length_normalized=False)
    config(loss=ipo).validate()
