"""Training pairs of very different lengths: ours against TRL's DPOTrainer, on the CPU.

    python benchmarks/lengths.py hh_harmless_base_test.jsonl.gz --model MODEL --rounds 3

Needs the parity extra, or another environment with torch and trl: --trl PYTHON. The
pairs' lengths are those of the file's rows in MODEL's tokens, prompts and completions
cut to 512 each; the ids are random, for one model with 5 M random parameters (Llama's
layers, width 256, a vocabulary of 4,096), float32. Reference log-probs are given, 8
pairs a step, AdamW, no recomputation. Parts run in fresh processes, in turns, on two
threads each. Printed are pairs per second, medians of the rounds by wall clock and by
CPU seconds; compiling and warming up are left out.

    ours     four lengths, like lengths together (train.lengths=4)
    longest  ours, all padded to the longest (train.lengths=1)
    TRL      its default collator: each batch padded to its own longest
    equal    both on pairs of 256 tokens
"""

import argparse
import gzip
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PAIRS, STEPS, WARM, LIMIT = 8, 40, 3, 512
VOCAB, WIDTH, LAYERS, HEADS, MLP = 4096, 256, 4, 4, 1024
Lengths = list[list[int]]


def read_lengths(file: pathlib.Path, model: str, count: int) -> Lengths:
    """Returns (prompt, chosen, rejected) tokens of the file's pairs, shuffled."""
    from tpmm_jax.data.codec import make_codec
    from tpmm_jax.data.config import DataConfig
    from tpmm_jax.data.prepare import load_rows
    from tpmm_jax.weights.loading import resolve

    found = resolve(model)
    data = DataConfig(
        max_prompt_length=LIMIT,
        max_completion_length=LIMIT,
        on_bad_rows="drop",
    )
    codec = make_codec(found.config, found.tokenizer, data)
    rows = load_rows(str(file), data, codec, note=print, warn=print)
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return [
        [len(row.prompt_ids), len(row.chosen_ids), len(row.rejected_ids)]
        for row in (rows[i] for i in order)
    ]


def make_pairs(lengths: Lengths) -> list[list[list[int]]]:
    """Returns random ids of those lengths, each completion with an end."""
    rng = np.random.default_rng(1)
    return [
        [
            rng.integers(4, VOCAB, p).tolist(),
            [*rng.integers(4, VOCAB, c - 1).tolist(), 1],
            [*rng.integers(4, VOCAB, r - 1).tolist(), 1],
        ]
        for p, c, r in lengths
    ]


def ours(lengths: Lengths, most: int) -> dict[str, Any]:
    """Returns seconds and pairs of our steps."""
    import jax

    from tpmm_jax.data.batches import collate
    from tpmm_jax.data.records import PairRow
    from tpmm_jax.data.table import best_lengths, fitting_lengths, row_lengths, take
    from tpmm_jax.loop.task import BatchOrder
    from tpmm_jax.losses import LossConfig
    from tpmm_jax.models import Decoder
    from tpmm_jax.models.families import make_config
    from tpmm_jax.steps import TrainConfig, init_state, preference_step

    config = make_config(
        "llama", vocab_size=VOCAB, width=WIDTH, mlp_width=MLP, num_layers=LAYERS,
        num_heads=HEADS, num_kv_heads=HEADS, max_positions=2 * LIMIT, pad_id=0,
        eos_ids=(1,), bos_id=2,
    )  # fmt: skip
    decoder = Decoder(config, remat=False)
    rows = [PairRow(*ids) for ids in make_pairs(lengths)]
    longest = max(p + max(c, r) for p, c, r in lengths)
    table = collate(rows, length=-(-longest // 32) * 32, pad_id=0)
    table["reference_BN"] = np.full((len(rows), 2), -100.0, np.float32)
    length_P = row_lengths(table)
    chosen = best_lengths(length_P, table["mask_BNT"].shape[-1], most)
    order = BatchOrder(len(rows), PAIRS, 1, 0, 1, length_P if most > 1 else None)
    train = TrainConfig(learning_rate=1e-5, batch_size=PAIRS, schedule="constant")
    step = preference_step(decoder, LossConfig(), train)
    state = init_state(decoder.init(jax.random.key(0)), train)

    def run(places: np.ndarray) -> None:
        nonlocal state
        batch = take(table, places, PAIRS, chosen)
        state, metrics = step(state, batch, 1e-5)
        float(metrics["loss"])

    # Every program, twice.
    for length in 2 * chosen:
        fits = np.flatnonzero(fitting_lengths(length_P, chosen) == length)
        run(fits[:PAIRS])
    return clocked(lambda i: run(order.places(i)), order.steps) | {"lengths": chosen}


def trl(lengths: Lengths, most: int) -> dict[str, Any]:
    """Returns the same of TRL."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(2)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"t{i}" for i in range(4, VOCAB))]
    table = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, pad_token_id=0,
        max_position_embeddings=2 * LIMIT, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    pairs = make_pairs(lengths)

    def text(ids: list[int]) -> str:
        # TRL adds the end token itself.
        return "".join(f" t{i}" for i in ids if i != 1)

    data = Dataset.from_dict(
        {
            name: [text(pair[k]) for pair in pairs]
            for k, name in enumerate(("prompt", "chosen", "rejected"))
        }
    )
    # A longest batch first, so that memory is there.
    ticks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks.append((time.perf_counter(), time.process_time()))

    steps = len(pairs) // PAIRS
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=steps,
            learning_rate=1e-5, lr_scheduler_type="constant", bf16=False, use_cpu=True,
            gradient_checkpointing=False, max_length=2 * LIMIT, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_steps=1, beta=0.1,
            precompute_ref_log_probs=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = DPOTrainer(
            model=LlamaForCausalLM(config).float(), args=args, train_dataset=data,
            processing_class=tokenizer, callbacks=[Clock()],
        )  # fmt: skip
        first = trainer.train_dataset[0]
        assert [len(first[f"{n}_ids"]) for n in ("prompt", "chosen", "rejected")] == (
            lengths[0]
        ), "the same tokens"
        trainer.train()
    wall, cpu = (np.diff([tick[i] for tick in ticks]).tolist() for i in (0, 1))
    return {"wall": wall[WARM:], "cpu": cpu[WARM:], "pairs": PAIRS}


def clocked(run: Callable[[int], None], steps: int) -> dict[str, Any]:
    """Returns the seconds of each step."""
    wall, cpu = list[float](), list[float]()
    for i in range(steps):
        began = time.perf_counter(), time.process_time()
        run(i)
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return {"wall": wall, "cpu": cpu, "pairs": PAIRS}


PARTS: dict[str, tuple[Callable[[Lengths, int], dict[str, Any]], int, bool]] = {
    "ours": (ours, 4, False),
    "longest": (ours, 1, False),
    "TRL": (trl, 0, False),
    "ours, equal": (ours, 1, True),
    "TRL, equal": (trl, 0, True),
}


def main() -> None:
    """Prints a line for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        make, most, equal = PARTS[args.part]
        lengths = json.loads(args.file.read_text())
        print(
            json.dumps(
                make([[64, 192, 192]] * len(lengths) if equal else lengths, most)
            )
        )
        return
    script = str(pathlib.Path(__file__))
    env = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    env["JAX_PLATFORMS"] = "cpu"
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder) / "rows.jsonl"
        opened = gzip.open if args.file.suffix == ".gz" else open
        with opened(args.file, "rt") as lines:
            rows.write_text("".join(lines))
        lengths = read_lengths(rows, args.model, PAIRS * STEPS)
        kept = pathlib.Path(folder) / "lengths.json"
        kept.write_text(json.dumps(lengths))
        whole = [p + max(c, r) for p, c, r in lengths]
        print(f"{len(whole)} pairs, {np.mean(whole):.0f} tokens on average, "
              f"{max(whole)} at most")  # fmt: skip
        for _ in range(args.rounds):
            for part, (make, *_rest) in PARTS.items():
                python = args.trl if make is trl else sys.executable
                done = subprocess.run(
                    [python, script, str(kept), "--model", "", "--part", part],
                    capture_output=True, text=True, env=env,
                )  # fmt: skip
                if done.returncode:
                    raise SystemExit(done.stderr)
                one = json.loads(done.stdout.strip().splitlines()[-1])
                found.setdefault(part, []).append(one)
    rates = {
        part: {
            clock: [len(x[clock]) * x["pairs"] / sum(x[clock]) for x in some]
            for clock in ("wall", "cpu")
        }
        for part, some in found.items()
    }
    for part, rate in rates.items():
        peer = rates["TRL, equal" if "equal" in part else "TRL"]
        told = [
            f"{statistics.median(x):.2f} pairs/s {clock} "
            f"({min(x):.2f} to {max(x):.2f}), "
            f"{statistics.median(x) / statistics.median(peer[clock]):.2f} x TRL"
            for clock, x in rate.items()
        ]
        print(f"{part:12} {'; '.join(told)} {found[part][0].get('lengths', '')}")


if __name__ == "__main__":
    main()
