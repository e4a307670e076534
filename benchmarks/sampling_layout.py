"""What a token moves between devices while answers are drawn: the compiled program.

    python benchmarks/sampling_layout.py     # Gemma 2B's shapes, 8 virtual CPU devices

Compiles ``sample`` with the weights where training has them (fsdp 8) and as
``sampling.layout`` lays them out, and adds up what the collectives inside the loop over
tokens give each device. On CPUs bfloat16 is computed, and moved, in float32: the sums
count two bytes a number instead. No weights are made; nothing is run.
"""

import math
import os
import re
from dataclasses import replace
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp

from tpmm_jax.mesh import BATCH, MeshConfig, make_mesh, sharding
from tpmm_jax.models import Decoder
from tpmm_jax.models.published import SIZES
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.sampling.decode import sample
from tpmm_jax.sampling.layout import bytes_of_weights, drawing_params, sampling_mesh

GEMMA = SIZES["gemma-2b"]
PROMPTS, SAMPLES = 64, 4
MOVE = re.compile(
    r"= \(?\w+\[([\d,]*)\].* (all-gather|all-reduce|all-to-all)(?:-start)?\("
)


def compiled(decoder: Decoder) -> str:
    """Returns the program of ``sample``, weights in compute_dtype."""

    def integers(*shape: int) -> Any:
        where = sharding(decoder.mesh, shape, BATCH)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)

    tokens = integers(PROMPTS, 32)
    lowered = sample.lower(
        decoder, drawing_params(decoder),
        tokens, tokens, integers(PROMPTS), jax.eval_shape(lambda: jax.random.key(0)),
        num_samples=SAMPLES, config=SamplingConfig(max_new_tokens=64), eos_ids=(1,),
        pad_id=0,
    )  # fmt: skip
    return lowered.compile().as_text()


def moved(text: str, layers: int) -> dict[str, float]:
    """Returns bytes a token by kind of collective, of those in the loop over tokens."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match, name = MOVE.search(line), re.search(r'op_name="([^"]*)"', line)
        if match is None or name is None or "sample)/while" not in name[1]:
            continue
        numbers = math.prod(map(int, filter(None, match[1].split(","))))
        # A loop in the loop: over the layers.
        times = layers if name[1].count("/while") > 1 else 1
        found[match[2]] = found.get(match[2], 0) + 2 * numbers * times
    return found


def main() -> None:
    """Prints bytes a token of each layout."""
    trained = Decoder(GEMMA, "bfloat16", mesh=make_mesh(MeshConfig(data=1, fsdp=8)))
    layouts = {
        "as trained": trained,
        "replicated": replace(trained, mesh=sampling_mesh(trained, None)),
        "tensor-parallel": replace(trained, mesh=sampling_mesh(trained, 1)),
    }
    for name, decoder in layouts.items():
        kinds = moved(compiled(decoder), GEMMA.num_layers)
        told = (
            ", ".join(f"{k} {v / 1e6:,.2f} MB" for k, v in kinds.items()) or "nothing"
        )
        held = bytes_of_weights(decoder, sampling=True) / 2**30
        print(f"{name:<16} {held:5.2f} GiB a device; a token moves {told}")


if __name__ == "__main__":
    main()
