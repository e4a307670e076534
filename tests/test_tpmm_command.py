"""The command tpmm: quick to explain itself, and the same as python -m."""

import argparse
import importlib
import subprocess
import sys

import pytest

import tpmm_jax
from tpmm_jax.commands import dispatch
from tpmm_jax.commands._line import guarded
from tpmm_jax.commands.options import (
    merge_checkpoints,
    merge_experts,
    plan,
    report,
    upcycle,
)
from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.merging import ExpertMergeConfig, ReferenceConfig
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.planning.devices import LOCAL
from tpmm_jax.report.page import NAME


def test_help_needs_neither_jax_nor_transformers():
    code = (
        "import sys\n"
        "from tpmm_jax.commands.dispatch import main\n"
        "main(['--help'])\n"
        "main(['--version'])\n"
        "main(['smaple'])\n"
        "slow = {'jax', 'transformers', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "merge_checkpoints" in run.stdout
    assert f"tpmm_jax {tpmm_jax.__version__}" in run.stdout
    assert "did you mean sample?" in run.stderr


def test_help_of_every_command_needs_no_jax():
    """Nor does an option that is refused."""
    code = (
        "import sys\n"
        "from tpmm_jax.commands.dispatch import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    for option in ('--help', '--no-such-option'):\n"
        "        try:\n"
        "            main([name, option])\n"
        "        except SystemExit as ended:\n"
        "            assert ended.code == (0 if option == '--help' else 2), name\n"
        "slow = {'jax', 'transformers', 'datasets', 'numpy', 'rich'}\n"
        "slow &= set(sys.modules)\n"
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: tpmm ") == len(dispatch.COMMANDS)


def test_the_options_know_the_defaults_of_what_they_set():
    for usual, config in (
        (merge_checkpoints.USUAL, ReferenceConfig()),
        (merge_experts.USUAL, ExpertMergeConfig()),
        (upcycle.USUAL, UpcyclingConfig()),
    ):
        assert usual == {name: getattr(config, name) for name in usual}
    assert plan.parse_args(["--config", "x.py"]).topology == LOCAL
    assert NAME in report.EPILOG


def test_an_unknown_command_has_nearest_names(capsys):
    assert dispatch.main(["exprot"]) == 2
    err = capsys.readouterr().err
    assert "no command 'exprot'" in err and "did you mean export" in err
    assert dispatch.main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sample", "merge_checkpoints", "export"])
def test_a_command_is_its_module_and_teaches(name, capsys):
    module = importlib.import_module(f"tpmm_jax.commands.{name}")
    texts = []
    for main in (
        module.main,
        lambda argv: dispatch.main([name.replace("_", "-"), *argv]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "examples:" in texts[0]
    assert f"usage: tpmm {name}" in texts[0]


def test_every_command_has_a_main():
    for name in dispatch.COMMANDS:
        assert callable(importlib.import_module(f"tpmm_jax.commands.{name}").main), name


def test_an_abbreviated_option_is_refused(capsys):
    sample = importlib.import_module("tpmm_jax.commands.sample")
    with pytest.raises(SystemExit) as ended:
        sample.main(["model", "--temp", "1"])
    assert ended.value.code == 2
    assert "--temperature?" in capsys.readouterr().err


def test_errors_become_exit_codes(capsys):
    nothing = argparse.Namespace()

    def broken(args, console):
        raise CorruptCheckpoint("step 3 is damaged; restore it")

    assert guarded(broken, nothing) == 3
    assert "step 3 is damaged" in capsys.readouterr().err
    assert guarded(lambda args, console: None, nothing) == 0

    def stopped(args, console):
        raise KeyboardInterrupt

    assert guarded(stopped, nothing) == 75


def test_the_facade_is_imported_when_it_is_used():
    assert set(tpmm_jax.__all__) <= set(dir(tpmm_jax))
    assert all(callable(getattr(tpmm_jax, name)) for name in tpmm_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'genrate'"):
        _ = tpmm_jax.genrate


def test_a_closed_output_does_not_pass_for_the_end_of_a_run(capfd, monkeypatch):
    monkeypatch.setattr("tpmm_jax.commands._line.os.dup2", lambda *_: None)
    nothing = argparse.Namespace()

    def work(args, console):
        raise BrokenPipeError

    assert guarded(work, nothing) == 0
    assert guarded(work, nothing, needs_reader=True) == 1
    assert "the same command continues" in capfd.readouterr().err
