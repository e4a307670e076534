"""Stopped anywhere and started again, a run leaves the bytes of an undisturbed one."""

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint
import pytest
import tiny_run

from tpmm_jax.commands import train as command_line
from tpmm_jax.config import Config
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.voice import StopFlag
from tpmm_jax.store import files

HERE = pathlib.Path(__file__).parent


class Crash(BaseException):
    """What a kill is to the code: nothing may catch it."""


def start(config: Config, workdir: pathlib.Path) -> str:
    out = io.StringIO()
    command_line.run(config, workdir, RunConsole(out, out))
    return out.getvalue()


def content(workdir: pathlib.Path) -> dict[str, bytes]:
    """What must be equal: the metrics, and every file of every iteration."""
    kept = [workdir / "metrics.jsonl", *workdir.glob("iterations/*/*")]
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(kept)
        if path.suffix != ".npz"
    }


def digests(workdir: pathlib.Path) -> list[str]:
    lines = (workdir / "trajectory" / "trajectory.jsonl").read_text().splitlines()
    return [json.loads(line)["digest"] for line in lines]


class Writes:
    """Counts durable writes, and crashes before or after the n-th.

    What is patched is where the bytes are written, below every module of a run: the
    two functions of store.files, the save of Orbax's managers, and the rename that
    gives a model's folder its name.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        tiny_run._built()  # once per process: not a write of a run
        self.count, self.crash_at, self.after = 0, -1, False
        self.names: list[str] = []
        self.undisturbed: list[str] = []
        self.first: list[str] = []
        for name in ("write_file", "append_lines"):
            original = getattr(files, name)
            wrapped = self.wrap(original, lambda path, *_, **__: path)
            for module in [m for n, m in sys.modules.items() if n.startswith("tpmm_")]:
                if getattr(module, name, None) is original:
                    patch.setattr(module, name, wrapped)
        # A model's folder is written beside its place, and then renamed.
        rename = pathlib.Path.rename
        counted = self.wrap(rename, lambda source, target: target)
        patch.setattr(
            pathlib.Path,
            "rename",
            lambda source, target: (
                counted
                if source.parent.name.startswith((".saving-", ".building-"))
                else rename
            )(source, target),
        )
        manager = orbax.checkpoint.CheckpointManager
        patch.setattr(
            manager,
            "save",
            self.wrap(manager.save, lambda self, step, **_: self.directory / str(step)),
        )

    def wrap(
        self, function: Callable[..., Any], path_of: Callable[..., Any]
    ) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            number, self.count = self.count, self.count + 1
            self.names.append(f"{function.__name__} {path_of(*args, **kwargs)}")
            if number == self.crash_at and not self.after:
                raise Crash
            result = function(*args, **kwargs)
            if number == self.crash_at:
                raise Crash
            return result

        return wrapped


@pytest.fixture(scope="module")
def writes() -> Iterator[Writes]:
    with pytest.MonkeyPatch.context() as patch:
        yield Writes(patch)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, writes: Writes
) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    start(tiny_run.get_config(), workdir)
    # Only the first run of a module is drawn, at its end.
    drawn = ("report.html", "reward.png")
    writes.undisturbed = [n for n in writes.names if not n.endswith(drawn)]
    writes.first = list(writes.names)
    return workdir


def crash_and_continue(
    writes: Writes, workdir: pathlib.Path, number: int, after: bool
) -> None:
    writes.count, writes.crash_at, writes.after = 0, number, after
    with pytest.raises(Crash):
        start(tiny_run.get_config(), workdir)
    writes.crash_at = -1
    start(tiny_run.get_config(), workdir)


def test_every_file_of_a_run_passes_through_a_counted_write(
    undisturbed: pathlib.Path, writes: Writes
) -> None:
    """But the lock and TensorBoard's mirror."""
    written = {pathlib.Path(name.split(" ", 1)[1]) for name in writes.first}
    missed = [
        path.relative_to(undisturbed)
        for path in undisturbed.rglob("*")
        if path.is_file() and not {path, *path.parents} & written
    ]
    assert {path.parts[0] for path in missed} == {"run.lock", "tensorboard"}
    folders = {path.parent.relative_to(undisturbed).parts[:1] for path in written}
    top = ("iterations", "trajectory", "work", "plots", "model")
    assert folders == {(), *((name,) for name in top)}


def test_two_undisturbed_runs_are_equal(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    start(tiny_run.get_config(), tmp_path / "run")
    assert content(tmp_path / "run") == content(undisturbed)
    assert digests(tmp_path / "run") == digests(undisturbed)


# Each of them: test_crash_at_every_write, which is slow.
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_crash_at_a_write(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path, writes: Writes, share: float
) -> None:
    number = int(share * len(writes.undisturbed))
    crash_and_continue(
        writes, tmp_path / "run", number, after=int(share * 100) % 2 == 0
    )
    assert content(tmp_path / "run") == content(undisturbed)
    assert digests(tmp_path / "run") == digests(undisturbed)


def test_crash_behind_the_record_of_a_learned_reference(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path, writes: Writes
) -> None:
    ends = [n.endswith("002/reference.json") for n in writes.undisturbed]
    crash_and_continue(writes, tmp_path / "run", ends.index(True), after=True)
    assert content(tmp_path / "run") == content(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_crash_at_every_write(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path, writes: Writes, after: bool
) -> None:
    wrong = []
    for number, name in enumerate(writes.undisturbed):
        workdir = tmp_path / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        crash_and_continue(writes, workdir, number, after=after)
        if content(workdir) != content(undisturbed):
            wrong.append(name)
    assert not wrong


def test_a_finished_run_does_nothing(undisturbed: pathlib.Path) -> None:
    before = content(undisturbed)
    start(tiny_run.get_config(), undisturbed)
    assert content(undisturbed) == before


def test_a_signal_saves_and_continues(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = 0
    original = StopFlag.check

    def check(self: StopFlag) -> None:
        nonlocal checks
        checks += 1
        if checks in (2, 9, 14):
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(StopFlag, "check", check)
    monkeypatch.setattr(command_line, "load_config", lambda *_: tiny_run.get_config())
    codes = []
    for _ in range(4):
        args = ["--config", "tiny_run.py", "--workdir", str(tmp_path / "run")]
        codes.append(command_line.main(args))
    assert codes == [75, 75, 75, 0]
    assert content(tmp_path / "run") == content(undisturbed)


# When to kill: as soon as this appears in the workdir.
PHASES = {
    "theta_0 stored": "trajectory/trajectory.jsonl",
    "sampling": "iterations/001/rollouts.jsonl",
    "pairs": "iterations/002/pairs.jsonl",
    "learning weights": "iterations/002/merge_progress.json",
    "reference": "iterations/002/reference.json",
    "reference log-probs": "iterations/002/reference_logps.npz",
    "training": "work/2",
    "evaluating": "iterations/002/evaluation.jsonl",
    "summary": "iterations/001/summary.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_sigkill_in_a_phase(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path, phase: str
) -> None:
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "tpmm_jax.train", "--config"]
    command += [str(HERE / "tiny_run.py"), "--workdir", str(workdir)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    while not (workdir / PHASES[phase]).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, **quiet)  # type: ignore[call-overload]
    assert content(workdir) == content(undisturbed)
    assert digests(workdir) == digests(undisturbed)
