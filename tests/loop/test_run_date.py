"""A run whose chat template writes the day keeps the day on which it began."""

import dataclasses
import datetime
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import tiny_run

from tpmm_jax.config import Config, ModelSource
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop import setup
from tpmm_jax.rewards import ScorerConfig

# The day of the month is a word of the tiny vocabulary: another day, other ids.
TEMPLATE = (
    "w{{ strftime_now('%-d') }} {% for m in messages %}{{ m.content }} {% endfor %}"
)
# (day of the month, config, workdir) -> the ids that iteration 2 trains on.
Opened: TypeAlias = Callable[[int, Config, pathlib.Path], list[list[int]]]


def build_model(directory: pathlib.Path, console: Any = None) -> None:
    tiny_run.build_model(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    def on_day(day: int, config: Config, workdir: pathlib.Path) -> list[list[int]]:
        date = datetime.date(2026, 11, day)
        monkeypatch.setattr(setup, "today", lambda: date)
        out = io.StringIO()
        with setup.open_run(config, workdir, RunConsole(out, out)) as run:
            if run.plan.schedule is not None:
                return run.plan.schedule.iteration(2).ids
            assert run.plan.pair_chunks is not None
            return [row.prompt_ids for _, row in run.plan.pair_chunks[1]]

    return on_day


def config_of(**changes: Any) -> Config:
    model = ModelSource(source="test_run_date:build_model", remat=False)
    config = tiny_run.get_config(model=model)
    data = dataclasses.replace(config.data, chat=True)
    return dataclasses.replace(config, **{"data": data, **changes})


def test_an_online_run_goes_on_with_its_day(
    tmp_path: pathlib.Path, opened: Opened
) -> None:
    first = opened(5, config_of(), tmp_path)
    assert {ids[0] for ids in first} == {3 + 5}
    assert json.loads((tmp_path / "data.json").read_text())["date"] == "2026-11-05"
    assert opened(6, config_of(iterations=3), tmp_path) == first


def test_an_offline_run_is_not_refused_the_next_day(
    tmp_path: pathlib.Path, opened: Opened
) -> None:
    rows = [
        {"prompt": f"w{i}", "chosen": "w2 w4", "rejected": f"w{i} w3"}
        for i in range(10, 18)
    ]
    pairs, workdir = tmp_path / "pairs.jsonl", tmp_path / "run"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(pairs=str(pairs), chat=True)
    config = config_of(data=data, scorer=ScorerConfig())
    first = opened(5, config, workdir)
    assert {ids[0] for ids in first} == {3 + 5}
    before = (workdir / "data.json").read_bytes()
    assert opened(6, config, workdir) == first
    assert (workdir / "data.json").read_bytes() == before
    # Another day would be other prompts: the record is not to be changed.
    (workdir / "data.json").write_bytes(before.replace(b"-11-05", b"-11-06"))
    with pytest.raises(CorruptCheckpoint, match=r"data\.json, line 2 is not what"):
        opened(5, config, workdir)
