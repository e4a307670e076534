"""What is planned is what a run does: the same programs, on the same arguments."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import pytest
import tiny_run

from tpmm_jax.config import Config, make_decoder
from tpmm_jax.loop import log_probs, setup, training
from tpmm_jax.losses import LossConfig
from tpmm_jax.merging import ReferenceConfig, learned
from tpmm_jax.mesh import MeshConfig
from tpmm_jax.planning.counts import count_work
from tpmm_jax.planning.phases import run_phases
from tpmm_jax.sampling import decode
from tpmm_jax.weights.description import read_config


def shapes(tree: Any) -> list[Any]:
    """Of each array its shape, its dtype and its part on a device."""
    found = []
    for x in jax.tree.leaves(tree):
        if hasattr(x, "dtype"):
            where = getattr(x, "sharding", None)
            part = x.shape if where is None else where.shard_shape(x.shape)
            found.append((x.shape, str(x.dtype), part))
    return found


def recorded(into: list[Any], program: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(program)
    def call(*args: Any, **kwargs: Any) -> Any:
        into.append(shapes((args, kwargs)))
        return program(*args, **kwargs)

    return call


MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(data=2, fsdp=4),
}


@pytest.mark.parametrize("name", MESHES)
def test_a_run_calls_what_was_planned(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"mesh": MESHES[name], "iterations": 2}
    if name == "fsdp":
        fields["reference"] = ReferenceConfig(rule="trust_region", trust_region_tau=1)
        fields["loss"] = LossConfig(name=["dpo", "sft"])
    config: Config = tiny_run.get_config(**fields)
    calls: dict[str, list[Any]] = {}
    for where, program in (
        (decode, "sample"),
        (log_probs, "token_log_probs_step"),
        (log_probs, "pair_log_probs_step"),
    ):
        inner = recorded(calls.setdefault(program, []), getattr(where, program))
        monkeypatch.setattr(where, program, inner)
    for where, maker in ((training, "preference_step"), (learned, "gradient_fn")):
        make = getattr(where, maker)
        into = calls.setdefault(maker, [])
        monkeypatch.setattr(where, maker, lambda *a, m=make, i=into: recorded(i, m(*a)))
    tiny_run.start(config, tmp_path / "run")

    mesh = setup.make_mesh(config.mesh)
    decoder = make_decoder(config.model, read_config(tmp_path / "run" / "model"), mesh)
    planned = {
        phase.name: phase
        for phase in run_phases(config, decoder, None, 0, count_work(config))
    }
    names = [
        ("sample", "sample"),
        ("sample", "sample to evaluate"),
        ("token_log_probs_step", "log-probs of answers"),
        ("pair_log_probs_step", "reference log-probs"),
        ("preference_step", "train"),
    ]
    if name == "data":
        names.append(("gradient_fn", "fusion gradient"))
    for program, phase in names:
        found = planned[phase]
        wanted = shapes((found.args, found.kwargs))
        assert calls[program], program
        # Constants of the loss are bound to the step; the rate is a Python number.
        seen = [[x for x in call if x[0] != ()] for call in calls[program]]
        assert [x for x in wanted if x[0] != ()] in seen, phase
