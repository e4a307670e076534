"""The examples in docstrings run, and whatever a user calls by name has one.

In a process of its own, without the tests' type checker: doctest passes over the
functions that it wraps. "my-model" is a tiny random model; "tpmm" is tpmm_jax.
"""

import pathlib
import subprocess
import sys

import tpmm_jax
from tpmm_jax.losses import LOSSES
from tpmm_jax.merging import RULES

TESTS = pathlib.Path(__file__).parent
RUN = """
import doctest, importlib, pathlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import tiny_run
import tpmm_jax as tpmm
from tpmm_jax.losses.inputs import example_pair

tiny_run.build_model(pathlib.Path("my-model"))
tiny_run.build_reward_model(pathlib.Path("my-reward-model"))
names = ["tpmm_jax.weights.loading", "tpmm_jax.weights.saving"]
for room in ("facade", "losses", "merging", "rewards"):
    found = importlib.import_module(f"tpmm_jax.{room}")
    names += [f"tpmm_jax.{room}.{m.name}" for m in pkgutil.iter_modules(found.__path__)]
failed = tried = 0
for name in names:
    module = importlib.import_module(name)
    known = {"tpmm": tpmm, "pathlib": pathlib, "example_pair": example_pair}
    globs = {**vars(module), **known}
    result = doctest.testmod(module, globs=globs)
    failed, tried = failed + result.failed, tried + result.attempted
print(f"{failed} of {tried} failed")
sys.exit(failed > 0 or tried == 0)
"""


def test_the_examples_run(tmp_path: pathlib.Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(TESTS / "loop")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_users_call_has_an_example() -> None:
    called = [getattr(tpmm_jax, name) for name in tpmm_jax.__all__ if name != "Model"]
    losses = [loss.function for loss in LOSSES.values()]
    for function in (*called, *RULES.values(), *losses):
        assert ">>>" in (function.__doc__ or ""), function.__qualname__
