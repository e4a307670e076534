"""Every test runs on the CPU with eight virtual devices, offline, types checked.

Tests of numbers run what XLA compiles for users. The others compare our code with
itself and leave XLA's expensive passes out, which halves their time; set
JAX_DISABLE_MOST_OPTIMIZATIONS=0 to run them fully optimised.
"""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("TPMM_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")

# What one worker or command has compiled, the others read. The folder is new for every
# run of the tests: a cache that outlived the code that filled it would hide faults.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tpmm-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("tpmm_jax", "typechecker.check")

import jax  # noqa: E402
import pytest  # noqa: E402

TESTS = pathlib.Path(__file__).parent
FIXTURES = TESTS / "fixtures"
# Folders and files whose tests make whole runs, or run many commands: marked "loop".
WHOLE_RUNS = (
    "loop",
    "demo",
    "report/test_page.py",
    "store/test_kill.py",
    "test_check_data_agrees.py",
    "test_contract.py",
    "test_docs_commands.py",
    "test_evaluate_command.py",
    "test_export_command.py",
    "test_merge_command.py",
    "test_sample_command.py",
)
# Folders and files whose tests hold numbers to a formula or other software's.
NUMBERS = (
    "losses",
    "parity",
    "models/test_golden.py",
    "models/test_packed.py",
    "merging",
    "test_fit.py",
    "test_steps.py",
    "weights",
)
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
QUICK_GIVEN = QUICK in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks whole runs, and puts them first: no long file is left for the end."""
    long = [item for item in items if _is_among(WHOLE_RUNS, item.path)]
    for item in long:
        item.add_marker(pytest.mark.loop)
    items.sort(key=lambda item: not item.get_closest_marker("loop"))


def _is_among(names: tuple[str, ...], path: pathlib.Path) -> bool:
    return any(path.is_relative_to(TESTS / name) for name in names)


@pytest.fixture(scope="module", autouse=True)
def compiler(request: pytest.FixtureRequest) -> None:
    """Sets how much XLA optimises, here and in the commands that a test starts."""
    if QUICK_GIVEN:
        return
    quick = not _is_among(NUMBERS, request.path)
    if os.environ.get(QUICK, "0") != str(int(quick)):
        os.environ[QUICK] = str(int(quick))
        jax.config.update(QUICK.lower(), quick)
        jax.clear_caches()


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """The folder of golden files."""
    return FIXTURES
