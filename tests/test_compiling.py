"""Compiled programs are kept for the next process, where the user wants it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tpmm_jax import compiling

CODE = """
import json, os, sys
import jax, jax.numpy as jnp
from jax._src import monitoring

import tpmm_jax
from tpmm_jax import compiling

assert jax.config.jax_compilation_cache_dir == os.environ.get(
    "JAX_COMPILATION_CACHE_DIR"
), "importing the package changes nothing"
compiling.MIN_SECONDS = 0
folder = compiling.keep_programs()
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.jit(lambda x: jnp.tanh(x) * 3)(jnp.ones(7)).block_until_ready()
print(json.dumps({
    "folder": folder and str(folder),
    "read": sum(name.endswith("cache_hits") for name in events),
    "most": jax.config.jax_compilation_cache_max_size,
}))
"""


def start(cache: pathlib.Path, **environment: str) -> dict:
    clean = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        env=clean | {"XDG_CACHE_HOME": str(cache)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    return json.loads(run.stdout)


def test_the_second_start_reads_what_the_first_compiled(tmp_path):
    folder = tmp_path / "tpmm_jax" / "programs"
    first, second = start(tmp_path), start(tmp_path)
    assert first == {"folder": str(folder), "read": 0, "most": 2 * 2**30}
    assert second["read"] > 0
    assert folder.stat().st_mode & 0o77 == 0, "others may run code through it"


def test_what_a_killed_writer_left_is_written_again(tmp_path):
    start(tmp_path)
    folder = tmp_path / "tpmm_jax" / "programs"
    for program in folder.glob("*-cache"):
        program.write_bytes(program.read_bytes()[:10])
    for used in folder.glob("*-atime"):
        used.unlink()
    compiling._drop_halves(folder)
    assert list(folder.glob("*-cache")), "a writer may be at work on them"
    for program in folder.glob("*-cache"):
        os.utime(program, (0, 0))
    assert start(tmp_path)["read"] == 0
    assert start(tmp_path)["read"] > 0


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_COMPILATION_CACHE_DIR": "elsewhere"},
        {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    ],
)
def test_jax_s_own_options_win(environment, tmp_path):
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "elsewhere")}
    found = start(tmp_path, **environment)
    assert found["folder"] is None and found["most"] == -1
    assert not (tmp_path / "tpmm_jax").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    file = tmp_path / "file"
    file.write_text("no folder")
    assert start(file) == {"folder": None, "read": 0, "most": -1}
