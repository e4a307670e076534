"""Memory of learning fusion weights, K = 2 against K = 16 checkpoints.

    JAX_PLATFORMS=cpu python benchmarks/merge_memory.py

Each K in a fresh process: a Gemma-architecture model of 19 M parameters, K random
checkpoints, three steps of Adam on the fusion logits, layer by layer. Prints the
memory that the compiled gradient needs and the peak of resident anonymous memory
while learning. Bars: equal; within 5 %.
"""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
from measure import PeakMemory, fresh, versions

from tpmm_jax.axes import Params
from tpmm_jax.merging import Deltas, HeldOut, ReferenceConfig, group_names
from tpmm_jax.merging.learned import gradient_fn, learn
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config

PAIRS, LENGTH = 8, 64


def decoder() -> Decoder:
    config = make_config(
        "gemma", vocab_size=8192, width=512, mlp_width=2048, num_layers=4,
        num_heads=4, num_kv_heads=1, head_dim=64,
    )  # fmt: skip
    return Decoder(config)


def held_out(model: Decoder, config: ReferenceConfig) -> HeldOut:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 8192, (PAIRS, 2, LENGTH)).astype(np.int32)
    ones = np.ones_like(tokens)
    table = {
        "tokens_BNT": tokens,
        "mask_BNT": ones,
        "completion_mask_BNT": ones,
        "reference_BN": np.zeros((PAIRS, 2), np.float32),
        "weight_B": np.ones(PAIRS, np.float32),
    }
    return HeldOut(model, config, table, PAIRS, seed=0)


def one(count: int) -> None:
    """Measures one K in this process; prints a JSON line."""
    model = decoder()
    config = ReferenceConfig(
        rule="learned", fit="adam", granularity="layer", steps=3, batch_size=PAIRS
    )
    names = group_names(model.abstract_params(), "layer")
    pairs = held_out(model, config)

    def restore(k: int) -> Params:
        return jax.block_until_ready(model.init(jax.random.key(k)))

    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder) / "deltas"
        with Deltas(scratch, restore, count, names) as deltas, PeakMemory() as memory:
            learn(deltas, pairs)
    run = gradient_fn(model, False, 1)
    batch = pairs.rows(np.arange(PAIRS), PAIRS)
    compiled = run.lower(model.abstract_params(), np.float32(0), batch).compile()
    analysis = compiled.memory_analysis()
    print(
        json.dumps(
            {
                "checkpoints": count,
                "parameters": model.num_params,
                "compiled_temp": analysis.temp_size_in_bytes,
                "compiled_arguments": analysis.argument_size_in_bytes,
                "compiled_output": analysis.output_size_in_bytes,
                "peak_anonymous": memory.peak,
            }
        )
    )


def main() -> None:
    few, many = (fresh(__file__, str(count)) for count in (2, 16))
    print(versions())
    for row in (few, many):
        mib = {k: round(v / 2**20, 1) for k, v in row.items() if "_" in k}
        print(f"K = {row['checkpoints']:2d}: {mib} MiB")
    same = all(few[k] == many[k] for k in few if k.startswith("compiled"))
    ratio = many["peak_anonymous"] / few["peak_anonymous"]
    print(f"compiled memory equal: {same}; anonymous peak, K = 16 / K = 2: {ratio:.3f}")
    sys.exit(0 if same and ratio <= 1.05 else 1)


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) > 1 else main()
