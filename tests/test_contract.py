"""What users and their files rely on: names that a change of the inside must keep.

Config fields and their defaults, commands and flags, the facade, what configs import,
"module:function" names that a stored config.json may hold, and the files of a run with
their fields and metric keys. tests/fixtures/contract.json holds them. A name that is
added is added there; one that goes breaks somebody's run:

    PYTHONPATH=. python tests/test_contract.py       writes the file anew
"""

import ast
import contextlib
import dataclasses
import importlib
import io
import json
import pathlib
import re
import sys
import tempfile
import typing

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "loop"), str(HERE)]

import fixed_runs  # noqa: E402

import tpmm_jax  # noqa: E402
from tpmm_jax.commands.dispatch import COMMANDS  # noqa: E402
from tpmm_jax.commands.dispatch import main as command  # noqa: E402
from tpmm_jax.config import Config, load_config  # noqa: E402

STORED = HERE / "fixtures" / "contract.json"
CONFIGS = sorted((HERE.parent / "configs").glob("*.py"))


def config_fields(cls: type = Config, prefix: str = "") -> dict[str, str]:
    """{dotted name: type and default} of every leaf."""
    hints, found = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            found |= config_fields(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        default = "none"
        if field.default is not dataclasses.MISSING:
            default = repr(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = repr(field.default_factory())
        found[prefix + field.name] = default
    return found


def flags() -> dict[str, list[str]]:
    """{command: its options, as its help shows them}."""
    found = {}
    for name in COMMANDS:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            command([name, "--help"])
        usage = out.getvalue().partition("\n\n")[0]
        found[name] = sorted(set(re.findall(r"--[a-z-]+", usage)))
    return found


def imports() -> list[str]:
    """Every name that a config file imports from here, "module:name"."""
    found = set()
    for path in CONFIGS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("tpmm_jax"):
                found |= {f"{module}:{alias.name}" for alias in node.names}
    return sorted(found)


def functions() -> list[str]:
    """Every "module:function" of this package that a config file names."""
    texts = [path.read_text(encoding="utf-8") for path in CONFIGS]
    return sorted(set(re.findall(r'"(tpmm_jax[\w.]*:\w+)"', "".join(texts))))


def files(workdir: pathlib.Path) -> dict[str, list[str]]:
    """{file of a run, numbers as N: its fields}; of metrics by kind."""
    found: dict[str, set[str]] = {}
    for path in sorted(workdir.rglob("*")):
        name = re.sub(r"\d+", "N", str(path.relative_to(workdir)))
        if path.is_dir() or not relied_on(name):
            continue
        if path.suffix not in (".json", ".jsonl"):
            found.setdefault(name, set())
            continue
        text = path.read_text(encoding="utf-8")
        rows = text.splitlines() if path.suffix == ".jsonl" else [text]
        for row in map(json.loads, rows):
            # Offline the run's own report names what a row is about.
            kind = f" {row['kind']}" if "kind" in row else ""
            found.setdefault(name + kind, set()).update(row)
    return {name: sorted(fields) for name, fields in found.items()}


def relied_on(name: str) -> bool:
    """Whether a file is ours: not Orbax's, the model's, TensorBoard's or a lock."""
    parts = name.split("/")
    inside = ("trajectory", "model", "tensorboard", "theta_N", "work")
    return (parts[0] not in inside or name == "trajectory/trajectory.jsonl") and (
        not name.endswith(".lock")
    )


def run_files(name: str, folder: pathlib.Path) -> dict[str, list[str]]:
    fixed_runs.write_pairs(folder / "pairs.jsonl")
    config = folder / "config_of_the_contract.py"
    config.write_text("from tiny_run import get_config\n")
    changes = fixed_runs.overrides(folder)[name]
    fixed_runs.run_one(load_config(config, changes), folder / "run")
    return files(folder / "run")


def contract() -> dict[str, typing.Any]:
    """All of it but the files of runs."""
    return {
        "config": config_fields(),
        "commands": flags(),
        "facade": sorted(tpmm_jax.__all__),
        "imports": imports(),
        "functions": functions(),
    }


@pytest.mark.parametrize("part", ["config", "commands", "facade"])
def test_the_names_are_as_they_were(part):
    assert contract()[part] == json.loads(STORED.read_text())[part]


@pytest.mark.parametrize("part", ["imports", "functions"])
def test_what_configs_name_is_there(part):
    for name in json.loads(STORED.read_text())[part]:
        module, _, attribute = name.partition(":")
        assert hasattr(importlib.import_module(module), attribute), name


SLOW = pytest.mark.slow
RUNS = [
    "learned",
    *(
        pytest.param(name, marks=SLOW)
        for name in ("lora", "trust_region", "offline", "beta_dpo", "simpo")
    ),
]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_the_same_files_and_fields(name, tmp_path):
    assert run_files(name, tmp_path) == json.loads(STORED.read_text())["runs"][name]


def main() -> None:
    runs = {}
    for name in fixed_runs.overrides(pathlib.Path()):
        with tempfile.TemporaryDirectory() as folder:
            runs[name] = run_files(name, pathlib.Path(folder))
    text = json.dumps({**contract(), "runs": runs}, indent=1, sort_keys=True)
    STORED.write_text(text + "\n")


if __name__ == "__main__":
    main()
