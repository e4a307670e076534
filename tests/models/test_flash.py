"""Attention in blocks, and cuDNN's: when it is taken; products in bfloat16."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder, flash, layers
from tpmm_jax.models.families import make_config
from tpmm_jax.models.layers import EVERYTHING, attend, attend_before, einsum
from tpmm_jax.models.sequences import Sequences, from_mask, may_attend
from tpmm_jax.steps.flops import count_flops

B, T, E = 8, 24, 16


def config(heads=8, groups=2, **more):
    return make_config(
        more.pop("family", "llama"), vocab_size=64, width=heads * E, mlp_width=64,
        num_layers=3, num_heads=heads, num_kv_heads=groups,
        head_dim=more.pop("head_dim", E), max_positions=64, bos_id=2, eos_ids=(1,),
        pad_id=0, **more,
    )  # fmt: skip


def rows(kind):
    """Rows of one sequence padded on a side, or of several."""
    rng = np.random.default_rng(0)
    right = (np.arange(T) < rng.integers(3, T, B)[:, None]).astype(np.int32)
    if kind == "whole":
        right[:] = 1
    if kind in ("right", "whole"):
        return from_mask(jnp.asarray(right), jnp.asarray(right))
    if kind == "left":
        left = jnp.asarray(right[:, ::-1])
        return from_mask(left, left)
    segments = np.sort(rng.integers(0, 3, (B, T)), axis=1)
    first = np.array([np.searchsorted(row, row) for row in segments])
    found = Sequences(segments, np.arange(T) - first, segments + 1)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), found)


def inputs(heads, groups, sequences):
    """Random q, k, v and gradient; of padding, which does not matter, no gradient."""
    rng = np.random.default_rng(1)
    *qkv, g = (
        jnp.asarray(rng.normal(size=(B, T, n, E)), jnp.float32)
        for n in (heads, groups, groups, heads)
    )
    return qkv, jnp.where((sequences.segments_BT > 0)[..., None, None], g, 0.0)


def assert_same(ours, plain, qkv):
    """Of the values and the gradients."""
    found, wanted = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*qkv) for f in (ours, plain)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        *(found, wanted),
    )


@pytest.mark.parametrize("kind", ["whole", "right", "left", "several"])
@pytest.mark.parametrize("least, blocks", [(5, 4), (7, 3), (24, 1)])
@pytest.mark.parametrize("reach", [EVERYTHING, 5])
def test_a_block_of_queries_needs_no_key_behind_it(
    monkeypatch, kind, least, blocks, reach
):
    monkeypatch.setattr(layers, "LEAST_BLOCK", least)
    model, sequences = config(), rows(kind)
    qkv, g = inputs(8, 2, sequences)

    def ours(q, k, v):
        out = attend_before(q, k, v, sequences, reach, model, jnp.float32, None)
        return jnp.sum(out * g)

    def plain(q, k, v):
        allowed = may_attend(sequences, sequences, reach)
        return jnp.sum(attend(q, k, v, allowed, model, jnp.float32) * g)

    assert_same(ours, plain, qkv)
    # Products of scores and of their gradients, a block as wide as its keys.
    share = sum((i + 1) / blocks for i in range(blocks)) / blocks
    whole = count_flops(jax.grad(plain), *qkv)
    counted = count_flops(jax.grad(ours), *qkv)
    assert counted / whole == pytest.approx(share, rel=0.03)
    monkeypatch.setattr(layers, "first_device", lambda mesh: on("tpu"))
    assert count_flops(jax.grad(ours), *qkv) == whole


@pytest.mark.parametrize(
    "sizes, heads, groups, kind, reach",
    [
        *((None, 8, 4, k, EVERYTHING) for k in ("whole", "right", "left", "several")),
        (None, 8, 1, "right", 5),
        ((2, 2, 2), 8, 1, "right", EVERYTHING),
        ((1, 2, 4), 8, 1, "left", 5),
        ((1, 2, 4), 8, 4, "several", EVERYTHING),
        ((1, 4, 2), 8, 4, "whole", EVERYTHING),
    ],
)
def test_who_looks_at_whom_is_as_without_cudnn(sizes, heads, groups, kind, reach):
    model, sequences = config(heads, groups), rows(kind)
    mesh = None
    if sizes is not None:
        mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes))))
    assert flash.takes(B, T, mesh)
    qkv, g = inputs(heads, groups, sequences)

    def ours(q, k, v):
        # XLA stands in for the kernel: cuDNN needs a GPU.
        arguments = sequences, jnp.int32(reach), model, mesh, "xla"
        return jnp.sum(flash.attend_flash(q, k, v, *arguments) * g)

    def plain(q, k, v):
        allowed = may_attend(sequences, sequences, reach)
        return jnp.sum(attend(q, k, v, allowed, model, jnp.float32) * g)

    assert_same(ours, plain, qkv)


@pytest.mark.parametrize(
    "rows, length, taken",
    [
        (8, 24, True),
        (6, 24, False),  # over 4 devices
        (8, 23, False),  # with a mask, an odd length has no gradient
    ],
)
def test_what_does_not_divide_is_left_to_xla(rows, length, taken):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert flash.takes(rows, length, mesh) is taken


def on(platform="gpu", capability="9.0"):
    """Such a device, as far as is asked."""
    return SimpleNamespace(platform=platform, compute_capability=capability)


@pytest.mark.parametrize(
    "more, dtype, device, sizes, has",
    [
        ({}, "bfloat16", on(), {}, True),
        ({}, "bfloat16", on(capability="8.0"), {}, True),
        ({}, "bfloat16", on(capability="12.0"), {}, True),
        ({}, "bfloat16", on(capability="7.5"), {}, False),
        ({}, "bfloat16", on(capability="gfx942"), {}, False),
        ({}, "bfloat16", on("tpu"), {}, False),
        ({}, "bfloat16", on("cpu"), {}, False),
        ({}, "float32", on(), {}, False),
        ({"head_dim": 256}, "bfloat16", on(), {}, True),
        ({"head_dim": 256}, "bfloat16", on(capability="8.9"), {}, False),
        ({"head_dim": 256}, "bfloat16", on(capability="10.0"), {}, False),
        ({"head_dim": 12}, "bfloat16", on(), {}, False),
        ({"family": "gemma2", "attention_softcap": 50.0}, "bfloat16", on(), {}, False),
        ({}, "bfloat16", on(), {"fsdp": 4, "tensor": 2}, True),
        ({}, "bfloat16", on(), {"tensor": 8}, False),  # 2 key/value heads over 8
        ({"groups": 1}, "bfloat16", on(), {"tensor": 8}, True),
        ({}, "bfloat16", on(), {"expert": 2}, False),
    ],
)
def test_the_kernel_is_taken_where_there_is_one(more, dtype, device, sizes, has):
    assert flash.has_kernel(config(**more), dtype, device, sizes) is has


def test_attention_is_xla_s_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: [on()])
    assert Decoder(config(), "bfloat16").flash
    assert not Decoder(config(), "bfloat16", attention="xla").flash
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        assert not Decoder(config(), "bfloat16").flash


@pytest.fixture
def traceable(monkeypatch):
    """Lets JAX trace the kernel, which nothing here can run."""
    import jax._src.cudnn.fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)


@pytest.mark.parametrize("remat", [False, True])
def test_operations_are_counted_by_cudnn_too(traceable, monkeypatch, remat):
    """Its primitives keep their names."""
    monkeypatch.setattr(
        Decoder, "flash", property(lambda self: self.attention == "auto")
    )
    sequences = rows("right")

    def count(attention):
        decoder = Decoder(config(), "bfloat16", remat, attention=attention)

        def loss(params):
            return jnp.sum(decoder.hidden(params, sequences).astype(jnp.float32))

        abstract = decoder.abstract_params()
        traced = str(jax.make_jaxpr(jax.grad(loss))(abstract))
        assert ("dot_product_attention" in traced) is (attention == "auto")
        return count_flops(loss, abstract), count_flops(jax.grad(loss), abstract)

    forward, backward = count("auto")
    assert forward == count("xla")[0]
    # With a mask, the dearer branch, attention is computed again.
    again = 3 * 2 * 2.0 * B * T * T * 8 * E
    assert backward == count("xla")[1] + again


def test_nothing_is_kept_of_who_looks_at_whom(traceable):
    """Of all tokens with all, in every layer, by the causal kernel too."""
    sequences, model = rows("right"), config()

    def loss(q, k, v):
        arguments = sequences, jnp.int32(EVERYTHING), model, None
        return jnp.sum(flash.attend_flash(q, k, v, *arguments).astype(jnp.float32))

    shapes = [jax.ShapeDtypeStruct((B, T, n, E), jnp.bfloat16) for n in (8, 2, 2)]
    _, kept = jax.eval_shape(lambda *x: jax.vjp(loss, *x), *shapes)
    masks = [x.shape for x in jax.tree.leaves(kept) if x.shape == (B, 1, T, T)]
    assert not masks


def test_gradients_are_multiplied_in_bfloat16():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((4, 6, 8), (8, 5)))
    # As a gradient is that comes from a result in bfloat16.
    g = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.bfloat16).astype(jnp.float32)

    def ours(x, w):
        return jnp.sum(einsum("BTD,DF->BTF", x, w, dtype=jnp.bfloat16) * g)

    def plain(x, w):
        both = "BTD,DF->BTF", x, w
        return jnp.sum(jnp.einsum(*both, preferred_element_type=jnp.float32) * g)

    pull = jax.grad(ours, (0, 1))
    lines = jax.jit(pull).lower(x, w).as_text().splitlines()
    products = [line.split(" : ")[-1] for line in lines if "dot_general" in line]
    assert len(products) >= 2
    for types in products:
        inputs, _ = types.split("->")
        assert inputs.count("xbf16>") == 2, types
    for found, wanted in zip(pull(x, w), jax.grad(plain, (0, 1))(x, w)):
        assert found.dtype == wanted.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            found.astype(jnp.float32), wanted.astype(jnp.float32), rtol=2**-7
        )
