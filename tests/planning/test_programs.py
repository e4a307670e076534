"""What a program moves, against what can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from tpmm_jax.mesh import FSDP, MeshConfig, make_mesh, sharding
from tpmm_jax.planning.programs import Collective, read_traffic

# As the TPU compiler writes: S(1) is on the chip, a fusion reads a slice of what it is
# given, a collective is spread over two fusions, and a loop counts to 7.
TPU = """
HloModule jit_f

%inner (p0: bf16[7,64,64], p1: s32[]) -> bf16[64,64] {
  %p0 = bf16[7,64,64]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %cut = bf16[1,64,64]{2,1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,64,64}
  ROOT %b = bf16[64,64]{1,0} bitcast(%cut)
}

%outer (q0: bf16[7,64,64], q1: s32[]) -> f32[64,64] {
  %q1 = s32[]{:S(6)} parameter(1)
  %q0 = bf16[7,64,64]{2,1,0} parameter(0)
  %f = bf16[64,64]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%inner
  ROOT %c = f32[64,64]{1,0:S(1)} convert(%f)
}

%start (r0: f32[64,64]) -> f32[128,64] {
  %r0 = f32[64,64]{1,0:S(1)} parameter(0)
  ROOT %g = f32[128,64]{1,0:S(1)} all-gather(%r0), channel_id=3, replica_groups={{0,1}}
}

%go_on (s0: f32[64,64]) -> f32[128,64] {
  %s0 = f32[64,64]{1,0:S(1)} parameter(0)
  ROOT %h = f32[128,64]{1,0:S(1)} all-gather(%s0), channel_id=3, replica_groups={{0,1}}
}

%all-reduce-scatter.1 (t0: f32[128,64]) -> f32[64,64] {
  %t0 = f32[128,64]{1,0} parameter(0)
  ROOT %r = f32[128,64]{1,0} all-reduce(%t0), channel_id=4, replica_groups=[1,2]<=[2]
}

%less (u: (s32[], bf16[7,64,64])) -> pred[] {
  %u = (s32[], bf16[7,64,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%u), index=0
  %n = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (v: (s32[], bf16[7,64,64])) -> (s32[], bf16[7,64,64]) {
  %v = (s32[], bf16[7,64,64]{2,1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%v), index=0
  %w = bf16[7,64,64]{2,1,0} get-tuple-element(%v), index=1
  %x = f32[64,64]{1,0:S(1)} fusion(%w, %i), kind=kOutput, calls=%outer
  %y = f32[128,64]{1,0:S(1)} fusion(%x), kind=kOutput, calls=%start
  %z = f32[128,64]{1,0:S(1)} fusion(%x), kind=kOutput, calls=%go_on
  ROOT %t = (s32[], bf16[7,64,64]{2,1,0}) tuple(%i, %w)
}

ENTRY %main (a: bf16[7,64,64], b: f32[128,64]) -> f32[64,64] {
  %a = bf16[7,64,64]{2,1,0} parameter(0)
  %b = f32[128,64]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %init = (s32[], bf16[7,64,64]{2,1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[7,64,64]{2,1,0}) while(%init), condition=%less, body=%body
  ROOT %sum = f32[64,64]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_tpu_program() -> None:
    found = read_traffic(TPU)
    # Each turn reads one matrix of the seven; what it makes stays on the chip.
    loop = 7 * 64 * 64 * 2
    # The sum reads its operand, and keeps a half.
    assert found.memory == loop + 128 * 64 * 4 + 64 * 64 * 4
    size = 128 * 64 * 4
    assert found.collectives == {
        "all-gather": Collective(7, 7 * size, 7 * size / 2),
        "reduce-scatter": Collective(1, size / 2, size / 2),
    }


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0]

    x, w = jnp.zeros((64, 64)), jnp.zeros((20, 64, 64))
    text = jax.jit(run).lower(x, w).compile().as_text()
    assert text is not None
    weights = w.size * 4
    # The weights once, and each turn's carry a few times.
    assert weights < read_traffic(text).memory < 8 * weights


def test_a_loop_of_unknown_length_takes_the_given_one() -> None:
    def run(x: jax.Array) -> jax.Array:
        def body(carry: tuple) -> tuple:
            step, x = carry
            return step + 1, jnp.sin(x)

        return jax.lax.while_loop(lambda c: jnp.sum(c[1]) > 0, body, (0, x))[1]

    x = jnp.zeros((1024, 1024))
    text = jax.jit(run).lower(x).compile().as_text()
    assert text is not None
    one, ten = read_traffic(text, 1).memory, read_traffic(text, 10).memory
    # Of ten turns nine more, each of which reads and writes x.
    assert ten - one == pytest.approx(9 * 2 * x.size * 4, rel=0.6)


def test_collectives_between_devices() -> None:
    mesh: Mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    w = jax.ShapeDtypeStruct(
        (256, 256), jnp.float32, sharding=sharding(mesh, (256, 256), FSDP)
    )
    whole = sharding(mesh, (256, 256))
    text = jax.jit(lambda w: w + 1, out_shardings=whole).lower(w).compile().as_text()
    assert text is not None
    size = 256 * 256 * 4
    found = read_traffic(text, devices=8).collectives
    assert found == {"all-gather": Collective(1, size, size * 7 / 8)}


STARTS = """
HloModule jit_g

ENTRY %main (a: f32[64], b: f32[32]) -> f32[64] {
  %a = f32[64]{0} parameter(0)
  %b = f32[32]{0} parameter(1)
  %room = f32[1000]{0} custom-call(), custom_call_target="AllocateBuffer"
  %both = (f32[64]{0}, f32[32]{0}) all-reduce-start(%a, %b), channel_id=1, GROUPS
  %done = (f32[64]{0}, f32[32]{0}) all-reduce-done(%both)
  %more = (f32[32]{0}, f32[64]{0}) all-gather-start(%b), channel_id=2, GROUPS
  ROOT %r = f32[64]{0} all-gather-done(%more)
}
""".replace("GROUPS", "replica_groups={{0,1}}")


def test_what_is_started_counts_once() -> None:
    found = read_traffic(STARTS)
    # Two sums read and write 96 numbers; 32 are read and 64 written.
    assert found.memory == 4 * (2 * 96 + 32 + 64)
    assert found.collectives == {
        "all-gather": Collective(1, 4 * 64, 4 * 32),
        "all-reduce": Collective(1, 4 * 96, 4 * 96),
    }
