"""Training pairs of very different lengths: ours against TRL's DPOTrainer, on the CPU.

    python benchmarks/lengths.py hh_harmless_base_test.jsonl.gz --model MODEL --rounds 3

Needs the parity extra, or another environment with torch and trl: --trl PYTHON. MODEL
is a directory of Llama's architecture; both train all of it in float32 on the same
tokens, prompts and completions cut to 256 each: 8 pairs a step, AdamW, no
recomputation, reference log-probs given. Parts run in fresh processes, in turns, on two
threads each. Printed are pairs per second, medians of the rounds, by wall clock and by
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

PAIRS, STEPS, WARM, LIMIT = 8, 16, 3, 256
# Ids of a pair's prompt, chosen and rejected completion.
Pairs = list[list[list[int]]]


def read_pairs(file: pathlib.Path, model: str, count: int) -> Pairs:
    """Returns the file's first pairs in the model's tokens, shuffled."""
    from tpmm_jax.data.codec import make_codec
    from tpmm_jax.data.config import DataConfig
    from tpmm_jax.data.prepare import load_rows
    from tpmm_jax.weights.loading import resolve

    found = resolve(model)
    data = DataConfig(
        max_prompt_length=LIMIT, max_completion_length=LIMIT, on_bad_rows="drop"
    )
    codec = make_codec(found.config, found.tokenizer, data)
    rows = load_rows(str(file), data, codec, note=print, warn=print)
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return [
        [list(row.prompt_ids), list(row.chosen_ids), list(row.rejected_ids)]
        for row in (rows[i] for i in order)
    ]


def ours(model: str, pairs: Pairs, most: int) -> dict[str, Any]:
    """Returns seconds of each of our steps."""
    from tpmm_jax.data.batches import collate
    from tpmm_jax.data.records import PairRow
    from tpmm_jax.data.table import best_lengths, fitting_lengths, row_lengths, take
    from tpmm_jax.loop.task import BatchOrder
    from tpmm_jax.losses import LossConfig
    from tpmm_jax.models import Decoder
    from tpmm_jax.steps import TrainConfig, init_state, preference_step
    from tpmm_jax.weights.loading import resolve

    found = resolve(model)
    decoder = Decoder(found.config, remat=False)
    rows = [PairRow(*ids) for ids in pairs]
    longest = max(len(p) + max(len(c), len(r)) for p, c, r in pairs)
    table = collate(rows, length=-(-longest // 32) * 32, pad_id=0)
    table["reference_BN"] = np.full((len(rows), 2), -100.0, np.float32)
    length_P = row_lengths(table)
    lengths = best_lengths(length_P, table["mask_BNT"].shape[-1], most)
    order = BatchOrder(len(rows), PAIRS, 1, 0, 1, length_P if most > 1 else None)
    train = TrainConfig(learning_rate=1e-5, batch_size=PAIRS, schedule="constant")
    step = preference_step(decoder, LossConfig(), train)
    state = init_state(found.read(decoder, "float32"), train)

    def run(places: np.ndarray) -> None:
        nonlocal state
        state, metrics = step(state, take(table, places, PAIRS, lengths), 1e-5)
        float(metrics["loss"])

    # Every program, twice.
    for length in 2 * lengths:
        run(np.flatnonzero(fitting_lengths(length_P, lengths) == length)[:PAIRS])
    ticks = [(time.perf_counter(), time.process_time())]
    for i in range(order.steps):
        run(order.places(i))
        ticks.append((time.perf_counter(), time.process_time()))
    return {"ticks": ticks, "lengths": lengths}


def trl(model: str, pairs: Pairs, most: int) -> dict[str, Any]:
    """Returns the same of TRL."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(2)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    end = loaded.config.eos_token_id
    # A word for each id, so that TRL trains on the same tokens.
    table = {f"<{i}>": i for i in range(loaded.config.vocab_size)}
    made = Tokenizer(models.WordLevel(table, unk_token="<0>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<0>", eos_token=f"<{end}>", unk_token="<0>"
    )

    def text(ids: list[int]) -> str:
        # TRL adds the end itself, also to a completion that was cut.
        return "".join(f" <{i}>" for i in (ids[:-1] if ids[-1] == end else ids))

    names = ("prompt", "chosen", "rejected")
    data = {name: [text(pair[k]) for pair in pairs] for k, name in enumerate(names)}
    ticks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS,
            max_steps=len(pairs) // PAIRS, learning_rate=1e-5, use_cpu=True,
            lr_scheduler_type="constant", bf16=False, gradient_checkpointing=False,
            max_length=2 * LIMIT, save_strategy="no", report_to="none", beta=0.1,
            disable_tqdm=True, logging_steps=1, precompute_ref_log_probs=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = DPOTrainer(
            model=loaded, args=args, train_dataset=Dataset.from_dict(data),
            processing_class=tokenizer, callbacks=[Clock()],
        )  # fmt: skip
        first = trainer.train_dataset[0]
        sizes = [len(first[f"{name}_ids"]) for name in names]
        assert all(abs(n - len(x)) <= 1 for n, x in zip(sizes, pairs[0])), sizes
        trainer.train()
    return {"ticks": ticks[WARM:]}


Part = Callable[[str, Pairs, int], dict[str, Any]]
PARTS: dict[str, tuple[Part, int]] = {
    "ours": (ours, 4),
    "longest": (ours, 1),
    "TRL": (trl, 0),
    "ours, equal": (ours, 1),
    "TRL, equal": (trl, 0),
}


def run_part(name: str, model: str, pairs: Pairs) -> dict[str, Any]:
    """Returns pairs per second of one part."""
    if name.endswith("equal"):
        ids = np.random.default_rng(1).integers(4, 500, (len(pairs), 3, 128)).tolist()
        pairs = [[p, [*c[:127], 2], [*r[:127], 2]] for p, c, r in ids]
    make, most = PARTS[name]
    found = make(model, pairs, most)
    ticks = found.pop("ticks")
    spent = [last - first for first, last in zip(ticks[0], ticks[-1])]
    count = PAIRS * (len(ticks) - 1)
    return found | {"wall": count / spent[0], "cpu": count / spent[1]}


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
        pairs = json.loads(args.file.read_text())
        print(json.dumps(run_part(args.part, args.model, pairs)))
        return
    env = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    env["JAX_PLATFORMS"] = "cpu"
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory() as folder:
        rows, kept = (pathlib.Path(folder) / name for name in ("p.jsonl", "p.json"))
        opened = gzip.open if args.file.suffix == ".gz" else open
        with opened(args.file, "rt") as lines:
            rows.write_text("".join(lines))
        pairs = read_pairs(rows, args.model, PAIRS * STEPS)
        kept.write_text(json.dumps(pairs))
        whole = [len(p) + max(len(c), len(r)) for p, c, r in pairs]
        print(
            f"{len(whole)} pairs of {np.mean(whole):.0f} tokens, {max(whole)} at most"
        )
        for _ in range(args.rounds):
            for part, (make, _most) in PARTS.items():
                python = args.trl if make is trl else sys.executable
                command = [python, __file__, str(kept), "--model", args.model]
                done = subprocess.run(
                    [*command, "--part", part], capture_output=True, text=True, env=env
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                found[part].append(json.loads(done.stdout.strip().splitlines()[-1]))
    for part, some in found.items():
        peer = found["TRL, equal" if part.endswith("equal") else "TRL"]
        told = []
        for clock in ("wall", "cpu"):
            rates = [one[clock] for one in some]
            ratio = statistics.median(rates) / statistics.median(x[clock] for x in peer)
            told.append(
                f"{statistics.median(rates):.2f} pairs/s {clock} ({min(rates):.2f} to "
                f"{max(rates):.2f}), {ratio:.2f} x TRL"
            )
        print(f"{part:12} {'; '.join(told)} {some[0].get('lengths', '')}")


if __name__ == "__main__":
    main()
