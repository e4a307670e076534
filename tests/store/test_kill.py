"""SIGKILL, full disks and sudden exits, in processes of their own."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from tpmm_jax.store import Trajectory, WorkStore, tree_digest

# theta_k of every child below, a function of k alone; NumPy, for nothing to compile.
POLICY = """
import os, sys, time
os.environ["JAX_PLATFORMS"] = "cpu"
import jax.numpy as jnp
import numpy as np

def policy(k, rows=400):
    noise = lambda s: np.random.default_rng(s).standard_normal((rows, 1000), np.float32)
    w = noise(0) + np.float32(0.01 * k) * noise(1)
    return {"a": {"w": jnp.asarray(w)}, "b": jnp.asarray(np.arange(5, dtype="f4") * k)}

from tpmm_jax.store import *
from tpmm_jax.errors import *
"""

APPEND = (
    POLICY
    + """
with Trajectory(sys.argv[1], storage=sys.argv[2]) as trajectory:
    k = len(trajectory.steps())
    print("start", flush=True)
    while True:
        theta = policy(k)
        print("saving", k, flush=True)
        digest = trajectory.append(k, theta, {"k": k})
        print("acked", k, digest, flush=True)
        k += 1
"""
)

SAVE = (
    POLICY
    + """
with WorkStore(sys.argv[1]) as work:
    k = (work.latest() or 0) + 1
    print("start", flush=True)
    while True:
        theta = policy(k)
        print("saving", k, flush=True)
        work.save(k, theta, {"k": k})
        work.wait()
        print("acked", k, "-", flush=True)
        k += 1
"""
)


def policy(k):
    space: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", os.environ["JAX_PLATFORMS"])
        exec(POLICY.partition("from tpmm_jax")[0], space)
    return space["policy"](k)


def run_and_kill(script, arguments, rng):
    """(acknowledged [(step, digest)], last word) of a child killed at some time.

    Half of the children are killed around their first save, which is the slow one;
    the other half after an acknowledged step, while the next are saved.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    wait_for = rng.choice(["start", "acked"])
    try:
        while not lines or lines[-1][0] != wait_for:
            line = child.stdout.readline()
            assert line, child.stderr.read()
            lines.append(line.split())
        time.sleep(rng.uniform(0.0, 0.8))
    finally:
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
    lines += [line.split() for line in out.splitlines()]
    return [(int(x[1]), x[2]) for x in lines if x[0] == "acked"], lines[-1][0]


def kill_trajectory(tmp_path, count, seed, storage):
    rng = random.Random(seed)
    folder = tmp_path / storage
    acked: dict[int, str] = {}
    in_flight = 0
    for _ in range(count):
        new, last = run_and_kill(APPEND, [folder, storage], rng)
        acked.update(new)
        in_flight += last == "saving"
        with Trajectory(folder) as trajectory:
            steps = trajectory.steps()
            assert steps == list(range(len(steps)))
            # One more than acknowledged: committed, and killed before it said so.
            assert len(acked) <= len(steps) <= len(acked) + 1
            for k in range(len(acked), len(steps)):
                acked[k] = trajectory.digest(k)
            assert all(trajectory.digest(k) == d for k, d in acked.items())
    target = jax.eval_shape(lambda: policy(0))
    with Trajectory(folder, storage=storage) as trajectory:
        for k in trajectory.steps():
            found = trajectory.restore(k, target)
            assert tree_digest(found) == acked[k]
            if storage == "float32":
                assert acked[k] == tree_digest(policy(k))
            assert trajectory.meta(k) == {"k": k}
        trajectory.append(len(acked), policy(len(acked)), {})
        assert len(list(folder.iterdir())) == len(acked) + 2  # the new one, the list
    print(
        f"{storage}: {count} kills, {in_flight} in a save, {len(acked)} steps, 0 lost"
    )
    return in_flight, len(acked)


def test_two_kills_lose_no_committed_step(tmp_path):
    _, steps = kill_trajectory(tmp_path, 2, seed=0, storage="float32")
    assert steps > 0


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float32", "bfloat16_delta"])
def test_25_kills_lose_no_committed_step(tmp_path, storage):
    in_flight, steps = kill_trajectory(tmp_path, 25, seed=1, storage=storage)
    assert in_flight >= 12 and steps >= 12


@pytest.mark.slow
def test_25_kills_of_the_work_store(tmp_path):
    rng = random.Random(2)
    last = in_flight = 0
    for _ in range(25):
        acked, word = run_and_kill(SAVE, [tmp_path], rng)
        in_flight += word == "saving"
        last = max([last, *(k for k, _ in acked)])
        with WorkStore(tmp_path) as work:
            latest = work.latest()
            if latest is None:
                assert last == 0
                continue
            assert latest >= last
            last = latest
            found, loop = work.restore(latest, jax.eval_shape(lambda: policy(0)))
        assert loop == {"k": latest}
        assert tree_digest(found) == tree_digest(policy(latest))
    print(f"work store: 25 kills, {in_flight} in a save, latest step {last}, 0 lost")
    assert in_flight >= 12 and last >= 12


LEAVE = (
    POLICY
    + """
how = sys.argv[2]
def main():
    with WorkStore(sys.argv[1]) as work:
        work.save(1, policy(1), {"k": 1})
        if how == "return":
            return
        if how == "exit":
            sys.exit(7)
        if how == "raise":
            raise ZeroDivisionError
        if how == "interrupt":
            import signal
            # A background job inherits an ignored SIGINT.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
main()
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "codes"),
    [("return", [0]), ("exit", [7]), ("raise", [1]), ("interrupt", [-2, 130])],
)
def test_every_way_out_finishes_the_save(tmp_path, how, codes):
    for i in range(3):
        command = [sys.executable, "-c", LEAVE, str(tmp_path / str(i)), how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40)
        assert done.returncode in codes, done.stderr
        if how == "raise":
            assert "ZeroDivisionError" in done.stderr
        with WorkStore(tmp_path / str(i)) as work:
            assert work.latest() == 1


FULL = (
    POLICY
    + """
import json, resource
folder, kind = sys.argv[1:]
def limit(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

said = []
if kind == "trajectory":
    with Trajectory(folder) as t:
        t.append(0, policy(0), {})
        for size in (200_000, 300):
            limit(size)
            try:
                t.append(1, policy(1), {})
            except StorageError as error:
                said.append([str(error), t.steps(), sorted(os.listdir(folder))])
        limit(-1)
        digest = t.append(1, policy(1), {})
else:
    with WorkStore(folder) as w:
        w.save(0, policy(0), {})
        w.wait()
        for size in (200_000, 300):
            limit(size)
            try:
                w.save(1, policy(1), {})
                w.wait()
            except StorageError as error:
                said.append([str(error), w.steps(), sorted(os.listdir(folder))])
        limit(-1)
        w.save(1, policy(1), {})
    digest = ""
print(json.dumps([said, digest]))
"""
)


@pytest.mark.parametrize("kind", ["trajectory", "work"])
def test_a_full_disk_is_raised_at_once_and_costs_no_step(tmp_path, kind):
    """A limit on a file's size stands for the full disk; it needs no privilege."""
    command = [sys.executable, "-c", FULL, str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Event loop" not in done.stderr
    said, digest = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == 2
    for message, steps, names in said:
        assert str(tmp_path) in message and "GB are free" in message, message
        assert steps == [0]
        if kind == "trajectory":
            assert names == ["0", "trajectory.jsonl"]
    if kind == "trajectory":
        with Trajectory(tmp_path, read_only=True) as trajectory:
            assert trajectory.steps() == [0, 1]
            assert trajectory.digest(1) == digest == tree_digest(policy(1))
    else:
        with WorkStore(tmp_path) as work:
            found, _ = work.restore(1, jax.eval_shape(lambda: policy(0)))
            assert tree_digest(found) == tree_digest(policy(1))
