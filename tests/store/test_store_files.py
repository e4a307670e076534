"""Small files are whole or absent; one process at a time owns a run's folder."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput, CorruptCheckpoint, StorageError
from tpmm_jax.store import RunLock, check_space, check_writable, disk_need, files
from tpmm_jax.store.digests import write_npz
from tpmm_jax.store.files import (
    append_lines,
    read_json,
    read_lines_repaired,
    write_json,
    write_text,
)


def test_files_come_back_and_leave_nothing_beside_them(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, 2.5, None], "a": "\u4e2d"})
    write_text(tmp_path / "a.txt", "x\n")
    write_text(tmp_path / "a.txt", "y\n")
    write_npz(tmp_path / "a.npz", {"m": np.arange(3), "w": jnp.ones(2)})
    assert read_json(tmp_path / "new" / "a.json") == {
        "b": [1, 2.5, None],
        "a": "\u4e2d",
    }
    assert (tmp_path / "a.txt").read_text() == "y\n"
    with np.load(tmp_path / "a.npz") as found:
        assert found["m"].tolist() == [0, 1, 2] and found["w"].tolist() == [1, 1]
    names = ["a.npz", "a.txt", "digests.jsonl", "new"]
    assert sorted(os.listdir(tmp_path)) == names
    write_text(tmp_path / ("n" * 255), "a name of the greatest length")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"a\.txt: No space left.*free some space"):
        write_text(tmp_path / "a.txt", "new")
    append = tmp_path / "lines"
    append.write_text("one\n")
    with pytest.raises(StorageError, match="lines"):
        append_lines(append, ["two"])
    assert append.read_text() == "one\n"
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "lines"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_every_oserror_names_the_path(code):
    reason = f"some/path: {os.strerror(code)}: "
    with pytest.raises(StorageError, match=reason), files.storage_errors("some/path"):
        raise OSError(code, os.strerror(code))


def test_what_is_not_json_or_would_be_pickled_is_refused(tmp_path):
    with pytest.raises(BadInput):
        write_json(tmp_path / "a", {"x": float("inf")})
    with pytest.raises(BadInput, match="'o' holds Python objects"):
        write_npz(tmp_path / "b", {"o": np.array([{}], dtype=object)})
    assert os.listdir(tmp_path) == []
    (tmp_path / "c").write_text("{")
    with pytest.raises(CorruptCheckpoint, match="c: not JSON"):
        read_json(tmp_path / "c")
    with pytest.raises(StorageError, match="absent"):
        read_json(tmp_path / "absent")


def test_a_torn_last_line_is_dropped_at_every_length(tmp_path):
    path = tmp_path / "log"
    for line in ("one", "\u4e2d\u4e2d", ""):
        append_lines(path, [line])
    whole = path.read_bytes()
    assert read_lines_repaired(path) == ["one", "\u4e2d\u4e2d", ""]
    for kept in range(len(whole) + 1):
        path.write_bytes(whole[:kept])
        expected = whole[:kept].decode("utf-8", "ignore").split("\n")[:-1]
        assert read_lines_repaired(path, truncate=False) == expected
        assert path.stat().st_size == kept
        assert read_lines_repaired(path) == expected
        path.write_bytes(whole[:kept])
        append_lines(path, ["next"])
        assert read_lines_repaired(path) == [*expected, "next"]
    assert read_lines_repaired(tmp_path / "absent") == []


def test_a_long_torn_line_is_dropped(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\n" + b"x" * 200_000)
    append_lines(path, ["two"])
    assert path.read_bytes() == b"one\ntwo\n"
    path.write_bytes(b"\xff\n")
    with pytest.raises(CorruptCheckpoint, match="line 1"):
        read_lines_repaired(path)


def test_disk_need():
    params = {
        "a": jax.ShapeDtypeStruct((1000, 3), jnp.float32),
        "b": jax.ShapeDtypeStruct((10,), jnp.bfloat16),
    }
    whole = 12_000 + 20
    need = disk_need(params, iterations=4, storage="float32", work_copies=0)
    assert need == 5 * whole
    need = disk_need(params, iterations=4, storage="bfloat16_delta", work_copies=2)
    assert need == whole + 4 * (6_000 + 20) + 2 * 3 * whole
    with pytest.raises(BadInput, match="wanted one of float32, bfloat16_delta"):
        disk_need(params, iterations=4, storage="float16")
    with pytest.raises(BadInput, match="-1"):
        disk_need(params, iterations=-1, storage="float32")


def test_check_space_and_check_writable(tmp_path):
    folder = tmp_path / "not" / "there" / "yet"
    check_space(folder, 10)
    assert not folder.exists()
    with pytest.raises(StorageError, match=r"yet: .*1000000\.00 GB.*GB are free"):
        check_space(folder, 10**15)
    check_writable(folder)
    assert os.listdir(folder) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        check_writable(tmp_path / "file")


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(StorageError, match="/proc/self"):
        check_writable("/proc/self/fdinfo")


LOCK_AND_WAIT = """
import os, sys, time
from tpmm_jax.store.digests import write_npz
from tpmm_jax.store.files import RunLock
with RunLock(sys.argv[1]):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(60)  # a data worker that outlives the run
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("arguments", [[], ["with a forked child"]])
def test_a_lock_names_its_holder_and_dies_with_it(tmp_path, arguments):
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, tmp_path, *arguments],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert holder.stdout and holder.stdout.readline() == b"locked\n"
        with pytest.raises(BadInput, match=f"process {holder.pid} on .*, started 20"):
            RunLock(tmp_path).__enter__()
        holder.kill()
        holder.wait()
        deadline = time.monotonic() + 5
        while True:
            try:
                with RunLock(tmp_path):
                    break
            except BadInput:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        os.killpg(holder.pid, signal.SIGKILL) if arguments else holder.kill()
        holder.stdout.close()
        holder.wait()


def test_a_lock_is_given_back(tmp_path):
    with RunLock(tmp_path / "run"):
        with pytest.raises(BadInput, match="in use by"), RunLock(tmp_path / "run"):
            pass
        owner = json.loads((tmp_path / "run" / "run.lock").read_text())
        assert owner["pid"] == os.getpid()
    with RunLock(tmp_path / "run"):
        pass
