"""A run whose pairs are padded to several lengths."""

import json
import os
import pathlib
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_run

from tpmm_jax.commands import train as command_line
from tpmm_jax.config import Config
from tpmm_jax.data.config import DataConfig
from tpmm_jax.loop import training
from tpmm_jax.loop.voice import StopFlag
from tpmm_jax.store.digests import read_npz


def prompts() -> list[str]:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 20, 64)
    return [" ".join(rng.choice(tiny_run.WORDS, size=size)) for size in sizes]


def config(lengths: int = 4) -> Config:
    base = tiny_run.get_config(
        data=DataConfig(prompts="test_several_lengths:prompts", max_prompt_length=24)
    )
    return replace(base, train=replace(base.train, lengths=lengths))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths that a tiny model has."""
    monkeypatch.setattr("tpmm_jax.data.table.SHORTEST", 8)
    monkeypatch.setattr("tpmm_jax.data.table.LENGTH_STEP", 8)


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_lengths_change_no_log_prob_and_a_stopped_run_goes_on_alike(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    step = training.preference_step

    def watched(*args: Any) -> Any:
        made = step(*args)

        def call(state: Any, batch: Any, *rest: Any, **more: Any) -> Any:
            seen.add(batch["tokens_BNT"].shape[-1])
            return made(state, batch, *rest, **more)

        return call

    monkeypatch.setattr(training, "preference_step", watched)
    said = tiny_run.start(config(), tmp_path / "several")
    assert "pairs per step padded to 8, 16, 24 or 32 tokens" in said
    assert len(seen) > 1, "batches of several lengths"
    several = set(seen)
    seen.clear()
    tiny_run.start(config(1), tmp_path / "one")
    assert len(seen) == 1 and max(several) == max(seen)

    # The first iteration's pairs are the same; so are the numbers, but for rounding.
    for file, name in (
        ("reference_logps.npz", "logps_MN"),
        ("log_probs.npz", "held_out.theta_0_MN"),
    ):
        found, wanted = (
            read_npz(tmp_path / which / "iterations" / "001" / file)[name]
            for which in ("several", "one")
        )
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)

    checks = 0
    original = StopFlag.check

    def check(self: StopFlag) -> None:
        nonlocal checks
        checks += 1
        if checks in (4, 9):
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(StopFlag, "check", check)
    monkeypatch.setattr(command_line, "load_config", lambda *_: config())
    argv = ["--config", "tiny_run.py", "--workdir", str(tmp_path / "stopped")]
    codes = [command_line.main(argv)]
    while codes[-1] == 75:
        codes.append(command_line.main(argv))
    assert codes[-1] == 0 and len(codes) > 2
    assert rows(tmp_path / "stopped") == rows(tmp_path / "several")
