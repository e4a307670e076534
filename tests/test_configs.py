"""Every shipped config is valid, and its full-size model fits its mesh in shape."""

import importlib.util
import math
import pathlib

import jax
import numpy as np
import pytest

from tpmm_jax.config import Config, RewardConfig, load_config
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.models.published import SIZES
from tpmm_jax.steps import abstract_state

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "stories260k").mkdir(parents=True)
    monkeypatch.setenv("TPMM_ASSETS", str(tmp_path))
    kind = RewardConfig if name.startswith(("reward_", "umm_")) else Config
    config = load_config(ROOT / "configs" / f"{name}.py", kind=kind)
    assert isinstance(config, kind)


# Published numbers of weights: Gemma report table 2 (2,506 M and 8,538 M), model cards.
PARAMS = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "smollm2-135m": 134_515_008,
    "llama3-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "smollm2-360m": 361_821_120,
    "llama3.2-1b": 1_235_814_400,
    "qwen2.5-7b": 7_615_616_512,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "llama3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen2.5-0.5b": 494_032_768,
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_shapes(name: str) -> None:
    assert Decoder(SIZES[name]).num_params == PARAMS[name]


@pytest.mark.parametrize("mesh", ["GPU_NODE", "TPU_POD"])
def test_gemma2b_on_its_meshes(mesh: str) -> None:
    path = ROOT / "configs" / "gemma2b.py"
    spec = importlib.util.spec_from_file_location("gemma2b", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes: MeshConfig = getattr(module, mesh)
    config = module.get_config(sizes)
    if sizes.fsdp > jax.device_count():
        # Eight devices stand in for a part of the pod.
        sizes = MeshConfig(data=1, fsdp=jax.device_count(), tensor=sizes.tensor)
    decoder = Decoder(
        SIZES["gemma-2b"], config.model.compute_dtype, mesh=make_mesh(sizes)
    )
    state = abstract_state(decoder.abstract_trained(), config.train)
    whole = local = 0
    for leaf in jax.tree.leaves(state):
        whole += math.prod(leaf.shape) * leaf.dtype.itemsize
        local += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    # float32 weights and two moments: 12 bytes a weight, split evenly but for norms.
    np.testing.assert_allclose(whole, 12 * PARAMS["gemma-2b"], rtol=1e-6)
    assert local <= whole / jax.device_count() * 1.01
    tokens = jax.ShapeDtypeStruct((8, 96), np.int32)
    hidden = jax.eval_shape(
        lambda p, t: decoder.hidden(p, from_mask(t, t)), state.params, tokens
    )
    assert hidden.shape == (8, 96, 2048) and hidden.dtype == "bfloat16"
