"""What bfloat16 does to log-probs: errors against float32, per token and sequence.

    JAX_PLATFORMS=cpu python benchmarks/bf16_log_probs.py
    JAX_PLATFORMS=cpu python benchmarks/bf16_log_probs.py MODEL [MODEL ...]

Without arguments, every family's fixture (random weights, vocabularies of 97 or 512);
otherwise models as tpmm_jax.load takes them. Three ways: float32 weights computed in
bfloat16 (what training with compute_dtype bfloat16 does), weights stored in bfloat16
and computed in float32, and both. Real models read English sentences, fixtures their
golden tokens. Errors are nats: root mean square and maximum over tokens, and the
maximum over sequences of a sum.
"""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from measure import versions

import tpmm_jax as tpmm

FIXTURES = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"
TEXTS = (
    "The library opens at nine in the morning and closes when the last reader leaves.",
    "Water boils at a lower temperature on a mountain, because the air presses less.",
    "She put the letter back into its envelope, sealed it again, and said nothing.",
    "To sort a list, compare neighbours and swap them until nothing is out of order.",
    "It was the best meal I have had in this town, and the worst service by far.",
)
WAYS = (
    ("computed in bfloat16", False, "bfloat16"),
    ("stored in bfloat16", True, "float32"),
    ("both", True, "bfloat16"),
)


def rows(model: tpmm.Model, folder: pathlib.Path | None) -> tuple[np.ndarray, ...]:
    """Right-padded token ids and their mask."""
    if folder is not None:
        golden = np.load(folder / "golden.npz")
        return golden["input_ids"], golden["attention_mask"]
    ids = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
    mask = np.zeros_like(tokens)
    for row, some in enumerate(ids):
        tokens[row, : len(some)], mask[row, : len(some)] = some, 1
    return tokens, mask


def errors(model: tpmm.Model, folder: pathlib.Path | None) -> list[list[str]]:
    """A row of the table for each way to round."""
    tokens, mask = rows(model, folder)
    exact = np.asarray(tpmm.log_probs(model, tokens, mask), np.float64)
    inside = (mask[:, 1:] > 0) & (mask[:, :-1] > 0)
    rounded = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), model.params
    )
    found = []
    for name, stored, compute in WAYS:
        decoder = dataclasses.replace(model.decoder, compute_dtype=compute)
        other = tpmm.Model(decoder, rounded if stored else model.params)
        logp = np.asarray(tpmm.log_probs(other, tokens, mask), np.float64)
        wrong = (logp - exact) * inside
        found.append(
            [
                name,
                f"{np.sqrt((wrong[inside] ** 2).mean()):.1e}",
                f"{np.abs(wrong).max():.1e}",
                f"{np.abs(wrong.sum(axis=1)).max():.1e}",
                f"{exact.sum() / inside.sum():.2f}",
            ]
        )
    return found


def main() -> None:
    kind = jax.devices()[0].device_kind
    print(f"{versions()}; jax on {kind}.\n")
    print("| model | weights | token, rms | token, max | sequence, max | mean log p |")
    print("|" + "---|" * 6)
    sources: list[tuple[str, pathlib.Path | None]] = [(x, None) for x in sys.argv[1:]]
    if not sources:
        folders = [x.parent for x in sorted(FIXTURES.glob("*/golden.npz"))]
        sources = [(str(folder), folder) for folder in folders]
    for source, folder in sources:
        for cells in errors(tpmm.load(source), folder):
            print(
                "| " + " | ".join([pathlib.Path(source).stem, *cells]) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
