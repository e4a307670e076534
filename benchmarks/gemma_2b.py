"""Gemma 2B's size on one GPU, random weights: a run of two iterations in bfloat16.

    python benchmarks/gemma_2b.py                        # 80 GB of GPU
    python benchmarks/gemma_2b.py --scratch /dev/shm     # the disk is memory
    JAX_PLATFORMS=cpu python benchmarks/gemma_2b.py --small

The run starts where 135 GB of disk are free, the most that it could take; a tmpfs may
be given that size on a machine of less memory.

configs/gemma2b.py on one device: all weights trained, float32 weights and moments; the
learned merge as reference, bfloat16 deltas as trajectory, no saves within an iteration;
32 + 64 tokens, --prompts prompts of 4 samples an iteration, a quarter as many to
evaluate. The tokenizer is a made one of as many words as the model has ids, prompts are
random words, and the scorer looks at words' last digits: what is measured is speed and
memory, not learning. --small takes a model of 5 M, to try the script itself.

Prints one JSON object for each phase of each iteration: its seconds (compiling
included, so iteration 2 is the one to read), of training the tokens a second, and the
most bytes that were in use on the device during it, asked every 10 ms. Then the error
of log-probs in bfloat16 against float32, per token, of 64 rows of 96 random tokens.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(pathlib.Path(__file__).parent.parent / "configs"))

import numpy as np

PROMPT, NEW = 32, 64


class Watch(threading.Thread):
    """Asks the device for its bytes in use, again and again; tells phases as they end.

    A row of the run's timing.jsonl is printed with the most GiB that were in use during
    it, so that a run that is stopped has told what it did.
    """

    def __init__(self, timing: pathlib.Path) -> None:
        super().__init__(daemon=True)
        self.timing, self.told = timing, 0
        self.seen: list[tuple[float, int]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        import jax

        device = jax.local_devices()[0]
        while not self.ended.wait(0.01):
            stats = device.memory_stats() or {}
            self.seen.append((time.time(), stats.get("bytes_in_use", 0)))
            if len(self.seen) % 100 == 0:
                self.tell()
        self.tell()

    def tell(self) -> None:
        """Prints the rows that the run has added since."""
        text = self.timing.read_text() if self.timing.exists() else ""
        # The last line may be half written.
        rows = text.split("\n")[:-1]
        for row in map(json.loads, rows[self.told :]):
            peak = self.peak(row["time"] - row["seconds"], row["time"])
            print(json.dumps(row | {"peak_gib": peak}), flush=True)
        self.told = len(rows)

    def peak(self, first: float, last: float) -> float:
        """Returns the most GiB between two times."""
        used = [n for at, n in self.seen if first <= at <= last]
        return round(max(used, default=0) / 2**30, 2)


def score(
    prompts: Sequence[str], responses: Sequence[Sequence[str]]
) -> list[list[float]]:
    """The share of a response's words that end in an even digit."""

    def share(text: str) -> float:
        return float(np.mean([w[-1] in "02468" for w in text.split()] or [0.0]))

    return [[share(text) for text in row] for row in responses]


def make_model(directory: str, console: Any) -> None:
    """Writes a model of random weights, in bfloat16, with a tokenizer of its words."""
    import jax
    from gpu import make_tokenizer

    from tpmm_jax.models import Decoder
    from tpmm_jax.models.families import make_config
    from tpmm_jax.models.published import SIZES
    from tpmm_jax.weights.saving import save
    from tpmm_jax.weights.source import Model

    small = make_config(
        "gemma", vocab_size=4096, width=256, mlp_width=1024, num_layers=4,
        num_heads=4, num_kv_heads=1, bos_id=2, eos_ids=(1,), pad_id=0,
    )  # fmt: skip
    config = small if os.environ.get("TPMM_SMALL") else SIZES["gemma-2b"]
    decoder = Decoder(config)
    params = decoder.init(jax.random.key(0), "bfloat16")
    tokenizer = make_tokenizer(config.vocab_size)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    save(Model(decoder, params, tokenizer), directory)


def run(scratch: pathlib.Path, prompts: int) -> None:
    """Two iterations; prints what timing.jsonl says of each phase, and its memory."""
    from gemma2b import get_config

    import tpmm_jax as tpmm
    from tpmm_jax.mesh import MeshConfig

    rng = np.random.default_rng(0)
    texts = [" ".join(f"t{i}" for i in rng.integers(4, 4000, PROMPT)) for _ in
             range(4 * prompts)]  # fmt: skip
    (scratch / "prompts.txt").write_text("\n".join(texts))
    c = get_config(MeshConfig(data=1, fsdp=1, tensor=1))
    config = dataclasses.replace(
        c,
        iterations=2,
        model=dataclasses.replace(c.model, source="gemma_2b:make_model"),
        data=dataclasses.replace(
            c.data, prompts=str(scratch / "prompts.txt"), prompt_field="prompt"
        ),
        rollout=dataclasses.replace(c.rollout, prompts_per_iteration=prompts),
        scorer=dataclasses.replace(c.scorer, name="gemma_2b:score"),
        reference=dataclasses.replace(c.reference, rule="learned"),
        train=dataclasses.replace(c.train, checkpoint_every=0),
        evaluation=dataclasses.replace(c.evaluation, num_prompts=prompts // 4),
        store=dataclasses.replace(c.store, storage="bfloat16_delta"),
    )
    watch = Watch(scratch / "run" / "timing.jsonl")
    watch.start()
    started = time.time()
    tpmm.run(config, scratch / "run")
    watch.ended.set()
    watch.join()
    whole = {"kind": "whole", "seconds": round(time.time() - started, 2),
             "peak_gib": watch.peak(started, time.time())}  # fmt: skip
    print(json.dumps(whole), flush=True)


def log_probs() -> dict[str, Any]:
    """Errors of log-probs in bfloat16, per token, against float32."""
    import jax
    from gpu import jax_report, rms

    import tpmm_jax as tpmm
    from tpmm_jax.models import Decoder
    from tpmm_jax.models.published import SIZES
    from tpmm_jax.weights.source import Model

    config = SIZES["gemma-2b"]
    exact = Decoder(config, chunk_bytes=2**29)
    params = exact.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, config.vocab_size, (64, PROMPT + NEW)).astype(np.int32)
    mask = np.ones_like(tokens)
    want = np.asarray(tpmm.log_probs(Model(exact, params), tokens, mask))
    half = dataclasses.replace(exact, compute_dtype="bfloat16")
    got = np.asarray(tpmm.log_probs(Model(half, params), tokens, mask))
    return jax_report(
        kind="log_probs", **rms({"token": got - want}),
        token_max=float(np.abs(got - want).max()),
        sequence_max=float(np.abs((got - want).sum(1)).max()),
        mean=float(want.mean()),
    )  # fmt: skip


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", help="where the model and the run are written")
    parser.add_argument("--prompts", type=int, default=512, help="of an iteration")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.small:
        os.environ["TPMM_SMALL"] = "1"
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        run(pathlib.Path(scratch), given.prompts)
    if not given.small:
        print(json.dumps(log_probs()), flush=True)


if __name__ == "__main__":
    main()
