"""Memory of one training step: all weights against LoRA adapters.

    JAX_PLATFORMS=cpu python benchmarks/lora_memory.py

SmolLM2-135M's shape, float32, 8 pairs of 96 tokens, remat; nothing is allocated: the
compiler's own analysis of the step. "state" is what the step keeps (weights or
adapters, and two Adam moments), "fixed" LoRA's weights, "work" the largest sum of
temporaries, gradients among them.
"""

import json
from typing import Any

import jax
import numpy as np
from measure import versions

from tpmm_jax.losses import LossConfig
from tpmm_jax.models import Decoder, LoraConfig, RopeConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.steps import Frozen, TrainConfig, abstract_state, preference_step

PAIRS, LENGTH = 8, 96
SMOLLM2 = make_config(
    "llama", vocab_size=49_152, width=576, mlp_width=1536, num_layers=30, num_heads=9,
    num_kv_heads=3, max_positions=8192, norm_eps=1e-5, tie_embeddings=True,
    rope=RopeConfig(theta=100_000.0),
)  # fmt: skip
FORMS = {
    "all weights": None,
    "LoRA, rank 16": LoraConfig(rank=16),
    "LoRA, rank 16, dropout": LoraConfig(rank=16, dropout=0.05),
}


def batch() -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of pairs."""
    tokens = jax.ShapeDtypeStruct((PAIRS, 2, LENGTH), np.int32)
    return {
        "tokens_BNT": tokens,
        "mask_BNT": tokens,
        "completion_mask_BNT": tokens,
        "reference_BN": jax.ShapeDtypeStruct((PAIRS, 2), np.float32),
        "weight_B": jax.ShapeDtypeStruct((PAIRS,), np.float32),
    }


def size(tree: object) -> int:
    """Returns bytes."""
    leaves = [x for x in jax.tree.leaves(tree) if x.dtype.itemsize]
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in leaves)


def main() -> None:
    """Prints a line a form, and the versions."""
    train = TrainConfig(learning_rate=1e-4, batch_size=PAIRS)
    for name, lora in FORMS.items():
        decoder = Decoder(SMOLLM2, lora=lora)
        state, frozen = abstract_state(decoder.abstract_trained(), train), None
        if lora is not None:
            key = jax.eval_shape(lambda: jax.random.key(0)) if lora.dropout else None
            frozen = Frozen(decoder.abstract_params(), key)
        step = preference_step(decoder, LossConfig(), train)
        arguments = (state, batch(), np.float32(0), frozen)
        compiled = step.func.lower(*arguments, **step.keywords).compile()
        found = compiled.memory_analysis()
        fixed = 0 if frozen is None else size(frozen.base)
        row: dict[str, Any] = {
            "form": name,
            "state_mib": size(state) / 2**20,
            "fixed_mib": fixed / 2**20,
            "work_mib": found.temp_size_in_bytes / 2**20,
        }
        row["sum_mib"] = sum(x for x in row.values() if isinstance(x, float))
        print(json.dumps({k: v if k == "form" else round(v) for k, v in row.items()}))
    print(versions())


if __name__ == "__main__":
    main()
