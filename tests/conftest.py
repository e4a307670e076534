"""Every test runs on the CPU with eight virtual devices, offline, types checked.

Tests of numbers run what XLA compiles for users. The others compare our code with
itself and leave out XLA's expensive passes and its emitters of fused loops, which take
most of the time of compiling; set JAX_DISABLE_MOST_OPTIMIZATIONS=0 to run them fully
optimised.
"""

import atexit
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = os.environ.get("TPMM_TEST_PLATFORM", "cpu")
DEVICES = "--xla_force_host_platform_device_count"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8"
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
import jax._src.compiler  # noqa: E402
import pytest  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from tpmm_jax.loop import setup  # noqa: E402
from tpmm_jax.mesh import MeshConfig, make_mesh  # noqa: E402

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
    "losses/test_logprobs.py",
    "losses/test_pairwise.py",
    "losses/test_trl_losses.py",
    "merging",
    "models/test_golden.py",
    "parity",
    "test_fit.py",
    "test_trl_steps.py",
    "weights",
)
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
QUICK_GIVEN = QUICK in os.environ
EMITTERS = "xla_cpu_use_fusion_emitters"
NO_EMITTERS = f" --{EMITTERS}=false"
# A flag that XLA does not know ends the process: only where it was tried.
if not QUICK_GIVEN and jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] += NO_EMITTERS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks whole runs, and puts them first: no long file is left for the end.

    Tests of numbers come last: to compile otherwise forgets what was compiled.
    """
    long = [item for item in items if _is_among(WHOLE_RUNS, item.path)]
    for item in long:
        item.add_marker(pytest.mark.loop)

    def place(item: pytest.Item) -> tuple[bool, bool]:
        numbers = _is_among(NUMBERS, item.path)
        return not item.get_closest_marker("loop"), numbers

    items.sort(key=place)


def _is_among(names: tuple[str, ...], path: pathlib.Path) -> bool:
    return any(path.is_relative_to(TESTS / name) for name in names)


@pytest.fixture(scope="module", autouse=True)
def compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets how much XLA optimises, here and in the commands that a test starts."""
    if QUICK_GIVEN:
        yield
        return
    quick = not _is_among(NUMBERS, request.path)
    if os.environ.get(QUICK, "0") != str(int(quick)):
        os.environ[QUICK] = str(int(quick))
        jax.config.update(QUICK.lower(), quick)
        jax.clear_caches()
    if quick or NO_EMITTERS not in os.environ["XLA_FLAGS"]:
        yield
        return
    jax.devices()  # XLA reads its flags once a process: now, if not before
    make = jax._src.compiler.get_compile_options

    def as_for_users(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        made.env_option_overrides = [*made.env_option_overrides, (EMITTERS, "True")]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax._src.compiler, "get_compile_options", as_for_users)
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(NO_EMITTERS, ""))
        yield


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """The folder of golden files."""
    return FIXTURES


@pytest.fixture(scope="module", autouse=True)
def one_device(request: pytest.FixtureRequest, compiler: None) -> Iterator[None]:
    """Puts whole runs that name no mesh on one device: eight take half as long again.

    Tests of meshes name theirs; they, and those of models and steps, run on eight.
    """
    if not _is_among(WHOLE_RUNS, request.path):
        yield
        return
    first = jax.devices()[:1]

    def make(config: MeshConfig) -> Mesh:
        return make_mesh(config, first if config == MeshConfig() else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_mesh", make)
        # Commands that a test starts: the last flag counts.
        one = f"{os.environ['XLA_FLAGS']} {DEVICES}=1"
        patch.setenv("XLA_FLAGS", one)
        yield
