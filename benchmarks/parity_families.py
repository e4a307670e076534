"""Every family's fixture against transformers: a table for docs/parity.md.

    JAX_PLATFORMS=cpu python benchmarks/parity_families.py

Per folder of tests/fixtures, float32: the largest difference from transformers' logits
(and how large those are) and log-probs; how many greedy tokens agree; the largest
difference in a log-prob between cached decoding and the full forward, and between
paddings; whether save() in several files and load() give the same bits; and, with
torch installed, transformers' logits from what save() wrote.
"""

import functools
import importlib.util
import os
import pathlib
import platform
import tempfile
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from measure import versions

import tpmm_jax as tpmm
from tpmm_jax.losses import log_probs
from tpmm_jax.models import from_mask

FIXTURES = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"
COLUMNS = (
    "family", "logits, max error", "largest logit", "log-probs, max error",
    "greedy, equal", "cache", "padding", "round trip", "saved, in transformers",
)  # fmt: skip


def golden_errors(model: tpmm.Model, golden: dict[str, np.ndarray]) -> list[str]:
    """Errors against the stored logits and log-probs."""
    tokens, mask = golden["input_ids"], golden["attention_mask"]
    logits = np.asarray(tpmm.logits(model, tokens, mask))
    real = mask > 0
    error = np.abs(logits - golden["logits"])[real].max()
    logp = np.asarray(tpmm.log_probs(model, tokens, mask))
    found = [error, np.abs(golden["logits"][real]).max()]
    found.append(np.abs(logp - golden["logps"]).max())
    return [f"{found[0]:.1e}", f"{found[1]:.1f}", f"{found[2]:.1e}"]


def cache_error(model: tpmm.Model, ids: np.ndarray) -> float:
    """Largest difference of any log-prob, cached against full."""
    decoder, params = model.decoder, model.params
    tokens = jnp.asarray(ids[None], jnp.int32)
    first = tokens.shape[1] // 3
    hidden = decoder.hidden(params, from_mask(tokens, jnp.ones_like(tokens)))
    full = jax.nn.log_softmax(decoder.logits(params, hidden))[0]
    decode = jax.jit(decoder.decode)
    one, state = decoder.prefill(
        params,
        from_mask(tokens[:, :first], jnp.ones_like(tokens[:, :first])),
        new_tokens=tokens.shape[1] - first,
    )
    errors = []
    for t in range(first, tokens.shape[1]):
        logp = jax.nn.log_softmax(decoder.logits(params, one[:, None]))[0, 0]
        errors.append(float(jnp.abs(logp - full[t - 1]).max()))
        one, state = decode(params, tokens[:, t], state)
    return max(errors)


def greedy_agreement(model: tpmm.Model, golden: dict[str, np.ndarray]) -> str:
    """How many of transformers' greedy tokens are ours, each after its own past."""
    decoder, params = model.decoder, model.params
    decode = jax.jit(decoder.decode)
    tokens, mask = (
        jnp.asarray(golden[name], jnp.int32)
        for name in ("gen_input_ids", "gen_attention_mask")
    )
    wanted = golden["greedy"]
    prompts = from_mask(tokens, mask)
    hidden, state = decoder.prefill(params, prompts, new_tokens=wanted.shape[1])
    equal = 0
    for step in range(wanted.shape[1]):
        logits = decoder.logits(params, hidden[:, None])[:, 0]
        equal += int((np.asarray(logits.argmax(-1)) == wanted[:, step]).sum())
        hidden, state = decode(params, jnp.asarray(wanted[:, step]), state)
    return f"{equal} of {wanted.size}"


def padding_error(model: tpmm.Model, ids: np.ndarray) -> float:
    """Largest difference in a token's log-prob, by side and amount of padding."""
    run = jax.jit(functools.partial(log_probs, model.decoder))
    lefts, T, length = (0, 1, 4, 13), len(ids), len(ids) + 13
    tokens = np.zeros((len(lefts), length), np.int32)
    mask = np.zeros_like(tokens)
    for row, left in enumerate(lefts):
        tokens[row, left : left + T], mask[row, left : left + T] = ids, 1
    rows = from_mask(jnp.asarray(tokens), jnp.asarray(mask))
    alone = from_mask(jnp.asarray(ids[None]), jnp.ones((1, T), jnp.int32))
    logp, plain = np.asarray(run(model.params, rows)), run(model.params, alone)
    shifted = [logp[row, left : left + T - 1] for row, left in enumerate(lefts)]
    return float(np.abs(np.stack(shifted) - np.asarray(plain)).max())


def round_trip(model: tpmm.Model, golden: dict[str, np.ndarray]) -> list[str]:
    """Whether the bits come back, and transformers' largest difference of logits."""
    with tempfile.TemporaryDirectory() as tmp:
        tpmm.save(model, f"{tmp}/out", max_shard_bytes=20_000)
        again = tpmm.load(f"{tmp}/out")
        same = jax.tree.map(
            lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(),
            again.params,
            model.params,
        )
        equal = all(jax.tree.leaves(same)) and again.config == model.config
        bits = "equal bits" if equal else "DIFFERS"
        if importlib.util.find_spec("torch") is None:
            return [bits, "not run: no torch"]
        import torch
        from transformers import AutoModelForCausalLM

        hf = AutoModelForCausalLM.from_pretrained(
            f"{tmp}/out",
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        )
    tokens, mask = golden["input_ids"], golden["attention_mask"]
    with torch.no_grad():
        theirs = hf.eval()(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)
        ).logits.numpy()
    ours = np.asarray(tpmm.logits(model, tokens, mask))
    return [bits, f"{np.abs(ours - theirs)[mask > 0].max():.1e}"]


def row(folder: pathlib.Path) -> list[str]:
    """One family's row of the table."""
    model = tpmm.load(folder)
    golden = dict(np.load(folder / "golden.npz"))
    ids = golden["input_ids"][0]
    return [
        folder.name,
        *golden_errors(model, golden),
        greedy_agreement(model, golden),
        f"{cache_error(model, ids):.1e}",
        f"{padding_error(model, ids):.1e}",
        *round_trip(model, golden),
    ]


def main() -> None:
    names = [f"transformers {version('transformers')}"]
    if importlib.util.find_spec("torch"):
        names.append(f"torch {version('torch')}")
    print(f"{versions()}, {', '.join(names)}.")
    kind = jax.devices()[0].device_kind
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, jax on {kind}.\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for path in sorted(FIXTURES.glob("*/golden.npz")):
        print("| " + " | ".join(row(path.parent)) + " |", flush=True)


if __name__ == "__main__":
    main()
