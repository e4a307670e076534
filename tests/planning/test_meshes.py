"""The advisor of meshes, and what it says against some."""

from typing import Any

import pytest

from tpmm_jax.chips import CHIPS, find_chip
from tpmm_jax.config import Config, ModelSource
from tpmm_jax.data.config import DataConfig
from tpmm_jax.models.advice import mesh_advice
from tpmm_jax.models.published import HUB, SIZES
from tpmm_jax.planning.meshes import MeshOption, mesh_options, stand_in_mesh
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.steps import TrainConfig


def config(batch_size: int = 64) -> Config:
    return Config(
        iterations=2,
        model=ModelSource(source="m", compute_dtype="bfloat16"),
        data=DataConfig(prompts="p"),
        scorer=ScorerConfig(name="a:b"),
        train=TrainConfig(learning_rate=1e-6, batch_size=batch_size),
    )


def options(model: str, count: int, kind: str = "v5e", **more: Any) -> list[MeshOption]:
    found = CHIPS[kind]
    given = {"chip": found, "memory": found.memory} | more
    return mesh_options(config(), SIZES[model], count, 96, **given)


def test_one_key_value_head_is_not_split() -> None:
    found = options("gemma-2b", 16)
    good = [one for one in found if not one.faults]
    assert good == found[: len(good)], "those with faults come last"
    assert all(one.shape["tensor"] == 1 for one in good)
    assert dict(good[0].shape) == {"data": 1, "fsdp": 16, "tensor": 1, "expert": 1}
    # 16 bytes a weight, split evenly.
    assert good[0].held == pytest.approx(16 * 2_506_172_416 / 16, rel=0.01)
    whole = next(one for one in found if one.shape["data"] == 16)
    assert whole.fits is False
    assert "37.3 GiB of a device's 15.8" in whole.faults[-1]
    split = next(one for one in found if one.shape["tensor"] == 2)
    assert "mesh.tensor=2 does not divide 1 key/value head:" in split.faults[0]


def test_every_mesh_has_all_devices() -> None:
    for one in options("mixtral-8x7b", 24, "v5p"):
        size = 1
        for length in one.shape.values():
            size *= length
        assert size == 24
    refused = [x for x in options("mixtral-8x7b", 24, "v5p") if x.shape["expert"] == 3]
    assert all("do not divide over mesh.expert" in x.faults[0] for x in refused)


def test_what_fsdp_leaves_whole_is_said() -> None:
    mesh = stand_in_mesh({"data": 1, "fsdp": 128, "tensor": 1, "expert": 1})
    [text] = mesh_advice(mesh, SIZES["smollm2-135m"], {"train.": 64})
    assert text == (
        "mesh.fsdp=128 does not divide the model's width of 576: every device holds "
        "100% of the weights, not 0.8%"
    )
    even = stand_in_mesh({"data": 2, "fsdp": 64, "tensor": 1, "expert": 1})
    assert mesh_advice(even, SIZES["smollm2-135m"], {"train.": 64}) == []


def test_without_a_chip_nothing_is_said_of_time() -> None:
    found = options("llama3-8b", 8, chip=None, memory=None)
    assert all(one.seconds is None for one in found)
    assert all(one.fits is None for one in found)


def test_chips_by_what_jax_calls_them() -> None:
    assert find_chip("TPU v5 lite") is CHIPS["v5e"]
    assert find_chip("TPU v5") is CHIPS["v5p"]
    assert find_chip("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert find_chip("cpu") is None


def test_published_models_are_known() -> None:
    assert set(HUB.values()) <= set(SIZES)
