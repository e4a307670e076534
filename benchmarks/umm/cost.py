"""What a mixture costs: FLOPs counted by hand and by compilers, seconds, block sizes.

    python benchmarks/umm/cost.py flops [--tpu v5e:2x2]   # a minute
    python benchmarks/umm/cost.py seconds                 # three minutes of one core
    python benchmarks/umm/cost.py blocks                  # five minutes of one core

flops    of scoring, one layer: a compiler counts the body of a loop once, and layers
         are a loop. For a TPU it is compiled ahead of time, which needs no TPU but
         libtpu (pip install "jax[tpu]"); no TPU's time follows from it.
seconds  of scoring with all layers, each variant in turn: dense, the mixture by the
         loop over blocks (what a CPU runs), by ragged_dot (what accelerators run),
         merged.
blocks   of models.grouped.BLOCK: forward and backward of one layer's routed experts at
         a training step's and a scoring batch's number of tokens.

Times are processor seconds of one core that the process is tied to, so that other work
on the machine tells as little as it can; the table has the median and the least.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

ROUNDS = 7
EXPERTS, TOP_K = 4, 2
# Rows and tokens of a scoring batch.
ROWS, TOKENS = 64, 64
# Name -> vocabulary, width, layers, heads, key/value heads, width of the feed-forward.
SIZES = {
    "stories260k": (512, 64, 5, 8, 4, 172),
    "SmolLM2, 4 layers": (512, 576, 4, 9, 3, 1536),
}
BLOCKS = (16, 32, 64, 128, 256)


def tie_to_one_core() -> None:
    """Before jax counts them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def architectures(size: str, layers: int | None = None) -> dict[str, Any]:
    """Returns {variant: ModelConfig}: dense, mixture."""
    from tpmm_jax.models import ExpertsConfig
    from tpmm_jax.models.families import make_config

    vocab, width, depth, heads, kv, mlp = SIZES[size]
    dense = make_config(
        "llama", vocab_size=vocab, width=width, mlp_width=mlp, num_heads=heads,
        num_layers=layers or depth, num_kv_heads=kv, max_positions=512, pad_id=0,
        eos_ids=(1,), bos_id=2,
    )  # fmt: skip
    dense = replace(dense, output="reward")
    experts = ExpertsConfig(count=EXPERTS, top_k=TOP_K, shared=0.5)
    return {"dense": dense, "mixture": replace(dense, experts=experts)}


def by_hand(config: Any) -> dict[str, float]:
    """Returns the FLOPs of the matrix products of one layer, for a scoring batch.

    Two a multiplication; attention as it is computed, all T x T scores.
    """
    tokens = ROWS * TOKENS
    D, F = config.width, config.mlp_width
    H, G, E = config.num_heads, config.num_kv_heads, config.head_dim
    found = {
        "attention": 2 * tokens * D * E * (2 * H + 2 * G) + 4 * tokens * TOKENS * H * E,
        "shared or dense": 6 * tokens * D * F,
    }
    if (experts := config.experts) is not None:
        found["routed, active"] = experts.top_k * 6 * tokens * D * F
        found["router"] = 2 * tokens * D * experts.count
    return {name: float(x) for name, x in found.items()}


def compiled(config: Any, mesh: Any, dtype: str) -> float:
    """Returns what the compiler of the mesh's devices counts for scoring."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from tpmm_jax.models import Decoder
    from tpmm_jax.steps import rewards_step

    decoder = Decoder(config, compute_dtype=dtype, remat=False, mesh=mesh)
    where = NamedSharding(mesh, PartitionSpec())
    ids = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32, sharding=where)
    lowered = rewards_step.lower(decoder, decoder.abstract_params(), ids, ids)
    return float(lowered.compile().cost_analysis()["flops"])


def flops(args: argparse.Namespace) -> None:
    """Prints FLOPs of one layer, by hand and as compilers count them."""
    import jax

    from tpmm_jax.mesh import MeshConfig, make_mesh

    backends = {"CPU": (jax.devices("cpu")[:1], "float32")}
    if args.tpu:
        from jax.experimental import topologies

        chips = topologies.get_topology_desc(platform="tpu", topology_name=args.tpu)
        backends[f"TPU {args.tpu}"] = (chips.devices[:1], "bfloat16")
    for size in SIZES:
        found = architectures(size, layers=1)
        print(f"{size}: one layer, {ROWS} rows of {TOKENS} tokens, MFLOP")
        for name, config in found.items():
            parts = by_hand(config)
            told = ", ".join(f"{k} {x / 1e6:.1f}" for k, x in parts.items())
            print(f"  {name} by hand: {sum(parts.values()) / 1e6:.1f} ({told})")
        for backend, (devices, dtype) in backends.items():
            mesh = make_mesh(MeshConfig(), devices)
            for name, ragged in variants(backend):
                with forced(ragged):
                    jax.clear_caches()
                    config = found["mixture" if "mixture" in name else "dense"]
                    count = compiled(config, mesh, dtype)
                print(f"  {name} as the {backend}'s compiler counts: {count / 1e6:.1f}")


def variants(backend: str) -> Iterator[tuple[str, bool]]:
    """Yields (name, whether ragged_dot is used)."""
    yield "dense, merged", False
    if backend == "CPU":
        yield "mixture, loop (the body of one block counts once)", False
    yield "mixture, ragged_dot", True


class forced:
    """A mixture's grouped product, ragged_dot or the loop, whatever the platform."""

    def __init__(self, ragged: bool) -> None:
        self.platform = "tpu" if ragged else "cpu"

    def __enter__(self) -> None:
        from tpmm_jax.models import experts

        self.before: Any = experts._platform
        experts._platform = lambda mesh: self.platform

    def __exit__(self, *_: object) -> None:
        from tpmm_jax.models import experts

        experts._platform = self.before


def in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Returns processor seconds of each call, compiled before, one after the other."""
    import jax

    for call in calls.values():
        jax.block_until_ready(call())
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            jax.block_until_ready(call())
            found[name].append(time.process_time() - started)
    return found


def show(found: Mapping[str, Sequence[float]], first: str) -> None:
    """Prints milliseconds, the median and the least, and the ratio to the first."""
    base = statistics.median(found[first])
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        print(
            f"  {name:<22} {1e3 * middle:8.1f} ms (least {1e3 * min(seconds):.1f}), "
            f"{middle / base:.2f} of {first}"
        )


def seconds(args: argparse.Namespace) -> None:
    """Prints how long scoring one batch takes."""
    for size in SIZES:
        calls = scorings(size)
        print(f"{size}: {ROWS} rows of {TOKENS} tokens, all layers, one core")
        show(in_turns(calls, ROUNDS if SIZES[size][1] < 256 else 3), "dense")


def scorings(size: str) -> dict[str, Callable[[], Any]]:
    """Returns what scores one batch with each variant, compiled."""
    import jax
    import numpy as np

    import tpmm_jax as tpmm
    from tpmm_jax.models import Decoder, from_mask
    from tpmm_jax.weights.source import Model

    tokens = np.random.default_rng(0).integers(3, SIZES[size][0], (ROWS, TOKENS))
    ids, mask = tokens.astype(np.int32), np.ones((ROWS, TOKENS), np.int32)
    models = {}
    for name, config in architectures(size).items():
        decoder = Decoder(config, remat=False)
        models[name] = Model(decoder, decoder.init(jax.random.key(0)))
    models["merged"] = tpmm.merge_experts(models["mixture"])
    calls: dict[str, Callable[[], Any]] = {}
    for name in ("dense", "mixture, loop", "mixture, ragged_dot", "merged"):
        model = models[name.partition(",")[0]]

        def rewards(params: Any, decoder: Any = model.decoder) -> Any:
            return decoder.rewards(params, from_mask(ids, mask))

        with forced("ragged" in name):
            program = jax.jit(rewards).lower(model.params).compile()
        calls[name] = functools.partial(program, model.params)
    return calls


def blocks(args: argparse.Namespace) -> None:
    """Prints how long one layer's routed experts take, by the size of a block."""
    from tpmm_jax.models import grouped

    cases = {
        "stories260k, a training step": (64, 172, 32 * 2 * 96),
        "stories260k, a scoring batch": (64, 172, 64 * 32),
        "SmolLM2, a training step": (576, 1536, 8 * 2 * 64),
        "SmolLM2, a scoring batch": (576, 1536, 16 * 32),
    }
    before = grouped.BLOCK
    for what, (D, F, tokens) in cases.items():
        calls = {}
        for block in BLOCKS:
            grouped.BLOCK = block
            calls[f"blocks of {block}"] = experts_call(D, F, tokens, "training" in what)
        grouped.BLOCK = before
        print(f"{what}: width {D}, {tokens} tokens, one layer, one core")
        show(in_turns(calls), f"blocks of {before}")


def experts_call(D: int, F: int, tokens: int, train: bool) -> Callable[[], Any]:
    """Returns what runs one layer's routed experts, and their gradient to train."""
    import jax
    import jax.numpy as jnp

    from tpmm_jax.models.experts import Routing, _local

    jax.clear_caches()
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (1, tokens, D))
    shapes = [(EXPERTS, D, F)] * 2 + [(EXPERTS, F, D)]
    w = [0.05 * jax.random.normal(key, shape) for key, shape in zip(keys[1:], shapes)]
    chances = jax.random.uniform(keys[4], (1, tokens, EXPERTS))
    gates, ids = jax.lax.top_k(chances, TOP_K)
    routing = Routing(ids, gates / gates.sum(axis=-1, keepdims=True))

    # An argument, or the sort would be done by the compiler.
    def run(x: Any, routing: Any, *w: Any) -> Any:
        out = _local(
            x, routing, *w, count=EXPERTS, activation=jax.nn.silu,
            dtype=jnp.float32, blocks=True,
        )  # fmt: skip
        return jnp.sum(out**2) if train else out

    made = jax.grad(run, argnums=(0, 2, 3, 4)) if train else run
    program = jax.jit(made).lower(x, routing, *w).compile()
    return functools.partial(program, x, routing, *w)


PARTS = {"flops": flops, "seconds": seconds, "blocks": blocks}


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="such as v5e:2x2")
    args = parser.parse_args()
    tie_to_one_core()
    PARTS[args.part](args)


if __name__ == "__main__":
    main()
