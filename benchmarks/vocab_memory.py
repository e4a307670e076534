"""Memory of a DPO step, a vocabulary of 262,144 against one of 4,096.

    JAX_PLATFORMS=cpu python benchmarks/vocab_memory.py

The same Gemma-architecture model twice, each in a fresh process: what the compiled
step needs (memory_analysis) and the peak of resident anonymous memory over two steps.
Bar: peak(256k) <= 1.15 peak(4k) + 16 dV D bytes, i.e. nothing but the embedding, its
gradient and Adam's two moments grows with the vocabulary. Full logits of this batch
would take 4.3 GB at 262,144.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from measure import PeakMemory, fresh, versions

from tpmm_jax.losses import LossConfig
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.steps import TrainConfig, init_state, preference_step

WIDTH, PAIRS, LENGTH = 256, 8, 256
SMALL, LARGE = 4096, 262_144


def one(vocab_size: int) -> None:
    """Measures one vocabulary in this process; prints a JSON line."""
    config = make_config(
        "gemma", vocab_size=vocab_size, width=WIDTH, mlp_width=4 * WIDTH, num_layers=4,
        num_heads=4, num_kv_heads=1, head_dim=64,
    )  # fmt: skip
    decoder, train = Decoder(config), TrainConfig(learning_rate=1e-5, batch_size=PAIRS)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (PAIRS, 2, LENGTH)).astype(np.int32)
    mask = np.ones_like(tokens)
    completion = mask * (np.arange(LENGTH) >= LENGTH // 4)
    batch = {
        "tokens_BNT": jnp.asarray(tokens),
        "mask_BNT": jnp.asarray(mask),
        "completion_mask_BNT": jnp.asarray(completion, jnp.int32),
        "reference_BN": jnp.full((PAIRS, 2), -1500.0, jnp.float32),
        "weight_B": jnp.ones(PAIRS, jnp.float32),
    }
    step = preference_step(decoder, LossConfig(), train)
    rate = jnp.float32(1e-5)

    state = init_state(decoder.init(jax.random.key(0)), train)
    analysis = (
        step.func.lower(state, batch, rate, **step.keywords).compile().memory_analysis()
    )
    compiled = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    compiled += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    with PeakMemory() as memory:
        for _ in range(2):
            state, metrics = step(state, batch, rate)
            jax.block_until_ready(metrics)
    row = {"vocab_size": vocab_size, "compiled": compiled, "process": memory.peak}
    print(json.dumps(row))


def main() -> None:
    small, large = (fresh(__file__, str(size)) for size in (SMALL, LARGE))
    print(versions())
    grown, good = 16 * (LARGE - SMALL) * WIDTH, True
    for name in ("compiled", "process"):
        bound = 1.15 * small[name] + grown
        good &= large[name] <= bound
        print(
            f"{name}: 4k {small[name] / 2**20:,.0f} MiB, 256k "
            f"{large[name] / 2**20:,.0f} MiB, bar {bound / 2**20:,.0f} MiB"
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) > 1 else main()
