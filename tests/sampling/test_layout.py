"""Weights while answers are drawn: no token gathers any, and the draws stay."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.mesh import AXES, MeshConfig, make_mesh, put_batch
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.sampling.decode import generate_batches, sample
from tpmm_jax.sampling.layout import bytes_of_weights, for_sampling, sampling_mesh

CONFIG = make_config(
    "gemma", vocab_size=512, width=64, mlp_width=128, num_layers=2, num_heads=4,
    num_kv_heads=1, head_dim=16, max_positions=64, bos_id=2, eos_ids=(1,), pad_id=0,
)  # fmt: skip
DRAWS = SamplingConfig(max_new_tokens=12)
MESHES = [
    MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
]  # fmt: skip


def decoder_on(mesh: MeshConfig, dtype: str = "float32") -> Decoder:
    return Decoder(CONFIG, dtype, mesh=make_mesh(mesh))


def gathered(decoder: Decoder, params: dict) -> int:
    """Bytes of weights that the program of ``sample`` gathers, a token."""
    tokens = np.full((8, 8), 5, np.int32)
    batch = put_batch(
        (tokens, np.ones_like(tokens), np.arange(8, dtype=np.int32)), decoder.mesh
    )
    program = sample.lower(
        decoder, params, *batch, jax.random.key(1), num_samples=1, config=DRAWS,
        eos_ids=(1,), pad_id=0,
    ).compile()  # fmt: skip
    found = 0
    for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", program.as_text()):
        sizes = [int(n) for n in shape.split(",")]
        # An activation has the rows of the batch; a matrix has the width or more.
        if np.prod(sizes) >= 64 * 16:
            found += 4 * int(np.prod(sizes))
    return found


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_no_token_gathers_weights(mesh: MeshConfig) -> None:
    decoder = decoder_on(mesh)
    params = decoder.init(jax.random.key(0))
    assert gathered(decoder, params) > 100_000
    assert gathered(*for_sampling(decoder, params)) == 0


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_answers_are_those_of_weights_where_they_lay(mesh: MeshConfig) -> None:
    alone = Decoder(CONFIG)
    params = alone.init(jax.random.key(0))
    prompts = [[2, 7, 9], [2, 11], [2, 30, 31, 32]]
    given = {"key": jax.random.key(3), "config": DRAWS, "eos_ids": (1,)}

    def answers(decoder: Decoder, params: dict) -> list:
        return [
            rows
            for _, rows in generate_batches(
                decoder, params, prompts, num_samples=2, batch_size=3, pad_id=0, **given
            )
        ]

    decoder = decoder_on(mesh)
    where = jax.tree.map(lambda x: x.sharding, decoder.abstract_params())
    split = jax.device_put(params, where)
    assert answers(decoder, split) == answers(alone, params)


def test_leaves_keep_the_dtype_that_they_are_used_in() -> None:
    decoder = decoder_on(MeshConfig(data=1, fsdp=8), "bfloat16")
    laid, params = for_sampling(decoder, decoder.init(jax.random.key(0)))
    assert params["layers"]["attention_norm"]["scale"].dtype == jnp.float32
    assert params["embedding"].dtype == jnp.bfloat16
    assert params["embedding"].is_fully_replicated
    assert laid.mesh is not None and dict(laid.mesh.shape) == dict(
        zip(AXES, (8, 1, 1, 1))
    )


def test_layers_are_split_where_the_whole_model_does_not_fit() -> None:
    decoder = decoder_on(MeshConfig(data=2, fsdp=4), "bfloat16")
    held = bytes_of_weights(decoder)
    assert held == pytest.approx(4 * decoder.num_params / 4, rel=0.02)
    whole = 2 * decoder.num_params
    room = sampling_mesh(decoder, int(2 * (held + whole)))
    assert dict(room.shape) == dict(zip(AXES, (8, 1, 1, 1)))
    tight = sampling_mesh(decoder, int(held + whole))
    assert dict(tight.shape) == dict(zip(AXES, (4, 1, 2, 1)))
    none = sampling_mesh(decoder, 1)
    assert dict(none.shape) == dict(zip(AXES, (2, 1, 4, 1)))
    for mesh in (room, tight, none):
        assert list(mesh.devices.flat) == list(jax.devices())
