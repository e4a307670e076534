"""A reward model's step and its scoring against TRL and transformers, on the CPU.

    python benchmarks/rewards/speed.py --rounds 3      # needs the parity extra

Parts run in fresh processes, in turns, two threads each; the table has the median of
all rounds and the ratio of the medians. The model has 5 M parameters (Llama's layers,
width 256, random weights), float32.

    step   8 pairs of 256 tokens, AdamW, no recomputation; TRL's RewardTrainer with the
           same pairs (sdpa)
    score  384 texts of 16 to 256 tokens from cold: ours by length, each read once;
           transformers' classifier in batches of 16 in the order given, padded to the
           longest of each batch, as its text-classification pipeline does
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

PAIRS, LENGTH, WARM, STEPS = 8, 256, 3, 8
TEXTS, BATCH = 384, 16
VOCAB, WIDTH, LAYERS, HEADS, MLP = 4096, 256, 4, 4, 1024


def rows(count: int, seed: int, low: int, high: int) -> list[list[int]]:
    """Returns rows of random ids, of lengths between two bounds."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(low, high + 1, count)
    return [rng.integers(4, VOCAB, size).tolist() for size in sizes]


def decoder() -> Any:
    """Returns our reward model."""
    from dataclasses import replace

    from tpmm_jax.models import Decoder
    from tpmm_jax.models.families import make_config

    config = make_config(
        "llama", vocab_size=VOCAB, width=WIDTH, mlp_width=MLP, num_layers=LAYERS,
        num_heads=HEADS, num_kv_heads=HEADS, max_positions=1024, pad_id=0,
        eos_ids=(1,), bos_id=2,
    )  # fmt: skip
    return Decoder(replace(config, output="reward"), remat=False)


def classifier() -> Any:
    """Returns the same model of transformers'."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.set_num_threads(2)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, pad_token_id=0,
        max_position_embeddings=1024, num_labels=1, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).float()


def ours_step() -> list[float]:
    """Returns the seconds of each step after the first ones."""
    import jax

    from tpmm_jax.losses import RewardLossConfig
    from tpmm_jax.steps import TrainConfig, init_state, reward_step

    model = decoder()
    train = TrainConfig(learning_rate=1e-5, batch_size=PAIRS)
    step = reward_step(model, RewardLossConfig(), train)
    state = init_state(model.init(jax.random.key(0)), train)
    ids = np.asarray(rows(2 * PAIRS, 0, LENGTH, LENGTH), np.int32)
    batch = {
        "tokens_BNT": ids.reshape(PAIRS, 2, LENGTH),
        "mask_BNT": np.ones((PAIRS, 2, LENGTH), np.int32),
        "margin_B": np.zeros(PAIRS, np.float32),
        "weight_B": np.ones(PAIRS, np.float32),
    }
    seconds = []
    for _ in range(WARM + STEPS):
        started = time.perf_counter()
        state, metrics = step(state, batch, 1e-5)
        float(metrics["loss"])
        seconds.append(time.perf_counter() - started)
    return seconds[WARM:]


def trl_step() -> list[float]:
    """Returns the same of TRL's RewardTrainer."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"t{i}" for i in range(4, VOCAB))]
    table = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    steps, ticks = WARM + STEPS, list[float]()
    # TRL adds the end token itself.
    texts = [
        "".join(f" t{i}" for i in ids)
        for ids in rows(2 * PAIRS * steps, 0, LENGTH - 1, LENGTH - 1)
    ]
    data = Dataset.from_dict({"chosen": texts[::2], "rejected": texts[1::2]})

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            ticks.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks[-1] += time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=steps,
            learning_rate=1e-5, lr_scheduler_type="constant", bf16=False, use_cpu=True,
            gradient_checkpointing=False, max_length=LENGTH, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_steps=steps,
        )  # fmt: skip
        trainer = RewardTrainer(
            model=classifier(), args=config, train_dataset=data,
            processing_class=tokenizer, callbacks=[Clock()],
        )  # fmt: skip
        assert len(trainer.train_dataset[0]["chosen_ids"]) == LENGTH
        trainer.train()
    return ticks[WARM:]


def ours_score() -> list[float]:
    """Returns the seconds in which all texts are rated, programs compiled before."""
    import jax

    from tpmm_jax.scoring import row_rewards

    model = decoder()
    params = model.init(jax.random.key(0))
    rate = functools.partial(row_rewards, model, params, batch_size=BATCH)
    rate(rows(TEXTS, 1, 16, LENGTH))
    seconds = []
    for seed in (2, 3, 4):
        some = rows(TEXTS, seed, 16, LENGTH)
        started = time.perf_counter()
        rate(some)
        seconds.append(time.perf_counter() - started)
    return seconds


def hf_score() -> list[float]:
    """Returns the same of transformers' classifier."""
    import torch

    model, seconds = classifier().eval(), []
    for seed in (1, 2, 3, 4):
        some = rows(TEXTS, seed, 16, LENGTH)
        started = time.perf_counter()
        with torch.no_grad():
            for at in range(0, TEXTS, BATCH):
                batch = some[at : at + BATCH]
                width = max(map(len, batch))
                ids = torch.zeros((len(batch), width), dtype=torch.long)
                for b, row in enumerate(batch):
                    ids[b, : len(row)] = torch.tensor(row)
                model(input_ids=ids, attention_mask=(ids != 0).long()).logits.tolist()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


PARTS = {
    "step": {"ours": ours_step, "TRL": trl_step},
    "score": {"ours": ours_score, "transformers": hf_score},
}


def main() -> None:
    """Prints a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", nargs=2, metavar=("PART", "WHO"))
    args = parser.parse_args()
    if args.part is not None:
        part, who = args.part
        print(json.dumps(PARTS[part][who]()))
        return
    script = str(pathlib.Path(__file__))
    env = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    env["JAX_PLATFORMS"] = "cpu"
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for part, sides in PARTS.items():
            for who in sides:
                done = subprocess.run(
                    [sys.executable, script, "--part", part, who],
                    check=True, capture_output=True, text=True, env=env,
                )  # fmt: skip
                seconds = json.loads(done.stdout.strip().splitlines()[-1])
                found.setdefault((part, who), []).extend(seconds)
    for part, sides in PARTS.items():
        units = {"step": PAIRS, "score": TEXTS}[part]
        medians = {who: statistics.median(found[part, who]) for who in sides}
        ours, theirs = medians.values()
        told = [
            f"{who} {units / s:.1f} {'pairs' if part == 'step' else 'texts'}/s "
            f"({min(found[part, who]):.3f} to {max(found[part, who]):.3f} s)"
            for who, s in medians.items()
        ]
        print(f"{part}: {', '.join(told)}; ours is {theirs / ours:.2f} times as fast")


if __name__ == "__main__":
    main()
