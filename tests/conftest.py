"""Every test runs on the CPU with eight virtual devices, offline, types checked."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = os.environ.get("TPMM_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("tpmm_jax", "typechecker.check")

import pytest  # noqa: E402

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """The folder of golden files."""
    return FIXTURES
