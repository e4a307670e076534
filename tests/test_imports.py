"""Imports go one way, flax stays in models, and nothing imports torch."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "tpmm_jax"

# A room may import rooms of earlier rows only. What is not named here is a command
# line (or the demo), the last row.
ORDER = (
    ("axes", "chips", "errors"),
    ("compiling", "stopping"),
    ("hosts",),
    ("mesh",),
    ("models",),
    ("data", "losses", "rewards"),
    ("evaluation",),
    ("merging", "sampling", "steps", "store"),
    ("weights",),
    ("scoring",),
    ("config", "facade"),
    ("log",),
    ("report",),
    ("loop",),
    ("iterate", "reward_runs"),
    ("planning",),
    ("commands",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
LAST = len(ORDER)

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    # "python -m" names a command line, whatever room it stands in.
    return "__main__" if parts[-1] == "__main__" else parts[0]


def imported(path):
    """Every module that a file imports, wherever in it the import stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_room_has_a_place():
    rooms = {room_of(path) for path in FILES}
    assert set(RANK) <= rooms, f"gone: {set(RANK) - rooms}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    for module in imported(path):
        top, _, rest = module.partition(".")
        assert top not in ("torch", "torchvision", "trl", "peft"), f"{path}: {module}"
        assert top != "flax" or room == "models", f"{path}: {module}"
        if top != "tpmm_jax" or not rest or room == "__init__":
            continue
        other = rest.split(".")[0]
        if other == room:
            continue
        assert "._" not in rest, f"{path} imports {module}, which is {other}'s own"
        earlier = RANK.get(other, LAST) < RANK.get(room, LAST)
        assert earlier or RANK.get(room, LAST) == LAST, f"{path} imports {module}"


def test_importing_everything_loads_no_torch():
    """In a process of its own, with the fast imports only."""
    code = (
        "import sys, tpmm_jax, tpmm_jax.iterate, tpmm_jax.commands.train\n"
        "bad = {'torch', 'tensorflow', 'trl'} & set(sys.modules)\n"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


def test_no_file_is_long_and_no_function_longer_than_a_screen():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # From "def" to the last line: a docstring takes room on the screen too.
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"
