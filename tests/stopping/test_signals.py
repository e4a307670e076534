"""SIGTERM and Ctrl-C end a process with 75, wherever it is; see ended.py."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from tpmm_jax.stopping import asked, boundaries, ends_process, watched
from tpmm_jax.stopping.guard import GUARD

ROOT = pathlib.Path(__file__).parents[2]
ENDED = ROOT / "tests" / "stopping" / "ended.py"


def stop(stage, hang, *signals):
    """Starts ended.py, sends signals; returns (exit code, seconds, what was said)."""
    process = subprocess.Popen(
        [sys.executable, str(ENDED), stage, hang],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    started = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, time.monotonic() - started, said


@pytest.mark.parametrize(
    "stage, hang, number, seconds, says",
    [
        ("start", "block", signal.SIGTERM, 2, "ended by"),
        ("work", "sleep", signal.SIGINT, 2, "unwound"),
        ("work", "block", signal.SIGTERM, 6, "as soon as scorer mine ends, in 5 sec"),
        ("loop", "sleep", signal.SIGINT, 6, "scorer mine had not ended"),
    ],
)
def test_one_signal(stage, hang, number, seconds, says):
    code, took, said = stop(stage, hang, number)
    assert (code, says in said) == (75, True), said
    # Only a run keeps something.
    assert "is kept" not in said or stage == "loop"
    # A second is left to a loaded machine.
    assert took < seconds, said


def test_a_second_signal_ends_it_at_once():
    code, took, said = stop("loop", "block", signal.SIGTERM, signal.SIGTERM)
    assert code == 75 and took < 3
    first, second = said.splitlines()
    assert first.startswith("SIGTERM: stopping as soon as scorer mine ends")
    assert second.startswith("ended by SIGTERM again; what was finished is kept")


def test_who_saves_is_given_the_time():
    code, took, said = stop("loop", "save", signal.SIGTERM)
    assert (code, said) == (75, "saved\n") and took > 4.9


def test_a_worker_that_is_ended_does_not_end_the_run():
    code, _, said = stop("loop", "fork")
    assert (code, said) == (0, f"worker {-signal.SIGTERM} asked None\n")


def test_handlers_are_given_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with watched(print), boundaries():
        assert asked() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == "SIGTERM"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    with boundaries():
        assert asked() is None


def test_a_compilation_is_known_as_one():
    found, over = set(), threading.Event()

    def look():
        while not over.is_set():
            found.add(GUARD._busy())
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    x, salt = jnp.ones((3, 3)), time.time()
    jax.jit(lambda x: sum(jnp.sin(x * (salt + i)) @ x for i in range(60)))(x)
    over.set()
    thread.join()
    assert "the compilation" in found


def test_a_person_is_told_of_a_thread_that_is_left(capsys, monkeypatch):
    monkeypatch.setattr("tpmm_jax.stopping.signals._MOMENT", 0.1)
    ends_process()
    assert capsys.readouterr().err == ""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name="uploads")
    thread.start()
    ends_process()
    ended.set()
    thread.join()
    assert "the process waits for uploads: " in capsys.readouterr().err
