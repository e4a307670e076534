"""Merges checkpoints: tpmm merge_checkpoints runs/x --uniform --output merged

Exit codes: 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax

from tpmm_jax.commands._learning import Learned, Split, split_rows
from tpmm_jax.commands._line import (
    Parser,
    add_base,
    check_all,
    check_least,
    guarded,
)
from tpmm_jax.commands._merges import (
    Merged,
    expand,
    merge_given,
    merge_learned,
    open_sources,
    warn_if_faint,
)
from tpmm_jax.commands._rows import add_row_options, row_options
from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import load_rows
from tpmm_jax.errors import BadInput
from tpmm_jax.facade import sum_remark
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.versions import versions
from tpmm_jax.merging import RULES, ReferenceConfig, signal_text
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.store import tree_digest
from tpmm_jax.weights.loading import check_dtype
from tpmm_jax.weights.saving import check_output, save
from tpmm_jax.weights.source import Source

DESCRIPTION = """\
Merge checkpoints of one architecture, in float32: sum_k w_k theta_k, computed as
(sum_k w_k) theta_0 + sum_k w_k (theta_k - theta_0).

Weights 0.25 0.75 are a quarter of the first model and three quarters of the second.
Weights 1 1 are the sum of both models, which is hardly ever meant: to add what a second
model learned to the first, both fine-tuned from BASE, merge BASE FIRST SECOND with
weights -1 1 1.

MODEL is what tpmm sample takes. A run's workdir stands for all of its policies, and
runs/x/trajectory@1..3 for three of them. The first model is theta_0, the anchor; the
output has its tokenizer, chat template and generation_config.json. Reward models are
merged too, with one another alone; their mean is WARM (arXiv 2401.12187), and the
workdir of tpmm train_reward is its best model. The output is a
Hugging Face directory; its merge.json records sources, digests and weights.
"""
EPILOG = """\
examples:
  tpmm merge_checkpoints runs/a/trajectory@0..2 --weights 0.5 0.3 0.2 --output merged
  tpmm merge_checkpoints runs/a runs/b/trajectory@4 --uniform --output merged
  tpmm merge_checkpoints runs/a --learn pairs.jsonl --granularity layer --output merged

--learn fits softmax weights so that the merge, scored as a policy against theta_0,
prefers the chosen answers (our reconstruction of the fusion objective: docs/design.md).
A share of the prompts is held out; accuracy and loss are reported on those alone. Give
pairs that no checkpoint was trained on: a checkpoint looks better than it is on its own
training pairs.
pairs.jsonl: chosen and rejected, with a prompt or without; texts or message lists.
"""

# Of options that mean something with --learn alone.
LEARNING_DEFAULTS = {
    "holdout": 0.2,
    "seed": 0,
    "max_prompt_length": 512,
    "max_completion_length": 512,
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(
        prog="tpmm merge_checkpoints", description=DESCRIPTION, epilog=EPILOG
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL")
    add_base(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--weights", type=float, nargs="+", metavar="W")
    how.add_argument("--uniform", action="store_true", help="1/K each")
    how.add_argument("--learn", metavar="PAIRS", help="learn them on preference pairs")
    add("--output", required=True, metavar="DIR", help="a new or empty directory")
    add("--dtype", default="float32", help="dtype of the output: float32 or bfloat16")
    add("--fsdp", type=int, default=1, help="devices to split weights over; -1: all")
    learning = add_learning(parser)
    args = parser.parse_args(argv)
    given = [a for a in learning if getattr(args, a.dest) is not None]
    if given and args.learn is None:
        parser.error(f"{given[0].option_strings[0]} needs --learn")
    for name, value in LEARNING_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def add_learning(parser: Parser) -> list[argparse.Action]:
    """Adds the options that mean something with --learn alone; None where not given."""
    usual, defaults = LEARNING_DEFAULTS, ReferenceConfig()
    add = parser.add_argument_group("with --learn").add_argument
    batch_size = defaults.batch_size
    return [
        add(
            "--granularity",
            choices=("model", "layer"),
            help="weights per model or per layer",
        ),
        add(
            "--objective", choices=("calibrated", "fixed"), help="fit D's scale, or not"
        ),
        add("--steps", type=int, help=f"steps of Adam (default: {defaults.steps})"),
        add("--beta", type=float, help=f"scale of D, or its start ({defaults.beta})"),
        add("--learning-rate", type=float, help=f"default: {defaults.learning_rate}"),
        add("--batch-size", type=int, help=f"pairs per step (default: {batch_size})"),
        add(
            "--holdout",
            type=float,
            help=f"share of prompts held out (default: {usual['holdout']})",
        ),
        add("--seed", type=int, help="seed of the split and the batches (default: 0)"),
        add(
            "--drop-bad-rows",
            action="store_const",
            const=True,
            help="drop bad rows of PAIRS instead of failing",
        ),
        *add_row_options(add, pairs=True),
        *(
            add(
                f"--max-{part}-length",
                type=int,
                help=f"tokens (default: {usual[f'max_{part}_length']})",
            )
            for part in ("prompt", "completion")
        ),
        add(
            "--chat",
            action=argparse.BooleanOptionalAction,
            help="write pairs with the chat template (default: if there is one)",
        ),
    ]


def given_weights(args: argparse.Namespace, names: Sequence[str]) -> list[float]:
    """Returns the weights asked for; uniform where none are."""
    if args.weights is None:
        return [1 / len(names)] * len(names)
    if len(args.weights) != len(names):
        listed = "\n".join(f"  {name}" for name in names)
        raise BadInput(
            f"{len(args.weights)} weights for {len(names)} models; wanted one each, in "
            f"this order:\n{listed}"
        )
    if not all(math.isfinite(w) for w in args.weights):
        raise BadInput(f"weights are {args.weights}; wanted finite numbers")
    return args.weights


def learning_config(args: argparse.Namespace) -> ReferenceConfig:
    """Returns the "learned" rule's constants, validated."""
    named = ("granularity", "objective", "steps", "beta", "learning_rate", "batch_size")
    changes = {n: getattr(args, n) for n in named if getattr(args, n) is not None}
    config = ReferenceConfig(rule="learned", fit="adam", **changes)
    config.validate(tuple(RULES))

    def check_holdout() -> None:
        if not 0 < args.holdout < 1:
            raise BadInput(f"--holdout is {args.holdout}; use a share between 0 and 1")

    least = {"seed": 0, "max_prompt_length": 1, "max_completion_length": 1}
    check_all(check_holdout, lambda: check_least(args, least))
    return config


def read_rows(args: argparse.Namespace, first: Source, console: RunConsole) -> Split:
    """Returns the pairs of --learn as token ids, a share of the prompts held out."""
    tokenizer = first.tokenizer
    if tokenizer is None:
        raise BadInput(
            f"{first.origin['source']} has no tokenizer (tokenizer.json), which "
            "--learn needs to read the pairs; copy it into that directory"
        )
    chat = bool(tokenizer.chat_template) if args.chat is None else args.chat
    how = "with the chat template" if chat else "as they are, without a chat template"
    console.note(f"pairs are written {how}")
    data = DataConfig(
        chat=chat,
        max_prompt_length=args.max_prompt_length,
        max_completion_length=args.max_completion_length,
        on_bad_rows="drop" if args.drop_bad_rows else "refuse",
        **row_options(args),
    )
    codec = make_codec(first.config, tokenizer, data)
    rows = load_rows(args.learn, data, codec, note=console.note, warn=console.warn)
    return split_rows(rows, args.holdout, args.seed)


def record(
    args: argparse.Namespace,
    config: ReferenceConfig | None,
    sources: Sequence[Source],
    merged: Merged,
) -> dict[str, Any]:
    """Returns the content of merge.json."""
    rule = "learned" if args.learn else "uniform" if args.uniform else "given"
    content: dict[str, Any] = {
        "sources": [
            {**source.origin, "digest": digest}
            for source, digest in zip(sources, merged.digests)
        ],
        "rule": rule,
        "weights": merged.weights_GK.tolist(),
        "digest": tree_digest(merged.params),
        "dtype": check_dtype(args.dtype),
        # null: nothing is rounded.
        "signal_to_rounding": {
            dtype: ratio if math.isfinite(ratio) else None
            for dtype, ratio in merged.ratios.items()
        },
        "versions": versions(),
    }
    if config is not None and merged.learned is not None:
        content["objective"] = {
            "note": "our reconstruction of the fusion objective",
            "pairs": pathlib.Path(args.learn).name,
            **asdict(config),
            "scale": merged.learned.scale,
            "seed": args.seed,
        }
        content["granularity"] = config.granularity
        content["held_out"] = {
            **merged.learned.counts,
            "scores": [asdict(score) for score in merged.learned.scores],
        }
    return content


def show(merged: Merged, names: Sequence[str], console: RunConsole) -> None:
    """Prints the weights, the held-out scores and the signal-to-rounding ratio."""
    weights_GK = merged.weights_GK
    rows = []
    for k, name in enumerate(names):
        text = f"{weights_GK[:, k].mean():.4f}"
        if len(weights_GK) > 1:
            low, high = weights_GK[:, k].min(), weights_GK[:, k].max()
            text += f"  ({low:.4f} to {high:.4f} over {len(weights_GK)} groups)"
        # A path may be longer than the line: it stands where it can wrap.
        rows.append((text, name))
    console.header("weights", rows)
    if merged.learned is not None:
        show_scores(merged.learned, console)
    for dtype, ratio in merged.ratios.items():
        console.note(signal_text(ratio, dtype))


def show_scores(learned: Learned, console: RunConsole) -> None:
    """Prints each model on the held-out pairs, and whether the merge is the best."""
    counts, rows = learned.counts, []
    for s in learned.scores:
        interval = f" [{s.low:.3f}, {s.high:.3f}]"
        rows.append((f"{s.accuracy:.3f}{interval}  loss {s.loss:.4f}", s.model))
    console.header(
        f"preference accuracy against theta_0 on {counts['held_out_pairs']} held-out "
        f"pairs of {counts['held_out_prompts']} prompts ({counts['learn_pairs']} pairs "
        "learned on)",
        rows,
    )
    *others, last = learned.scores
    best = min(others, key=lambda s: s.loss)
    if last.loss >= best.loss:
        console.warn(
            f"on the held-out pairs the learned merge is no better than {best.model} "
            f"(loss {last.loss:.4f} and {best.loss:.4f})"
        )


def run(args: argparse.Namespace, console: RunConsole) -> None:
    """Checks everything, merges, writes."""
    dtype = check_dtype(args.dtype)
    names = expand(args.models)
    check_output(args.output)
    weights = given_weights(args, names)
    learning = None if args.learn is None else learning_config(args)
    sources = open_sources(names, args.base, console)
    config, output = sources[0].config, pathlib.Path(args.output)
    rewards = config.output == "reward"
    if rewards and learning is not None:
        raise BadInput(
            "--learn scores the merge as a policy, and these are reward models; use "
            "--uniform (WARM) or --weights"
        )
    copies = len(names) + 1 if args.learn else 1
    check_output(output, 4 * copies * Decoder(config).num_params)
    mesh = None if args.fsdp == 1 else make_mesh(MeshConfig(fsdp=args.fsdp))
    decoder = Decoder(config, mesh=mesh)
    if learning is not None:
        merged = merge_learned(
            sources,
            names,
            read_rows(args, sources[0], console),
            decoder,
            learning,
            seed=args.seed,
            near=output,
            console=console,
        )
    else:
        merged = merge_given(sources, weights, decoder, console)
        if remark := sum_remark(weights):
            console.warn(remark)
    show(merged, names, console)
    content = record(args, learning, sources, merged)
    if dtype == "bfloat16":
        change = f"its change to {names[0]}"
        warn_if_faint(console, merged.ratios[dtype], "the merge", change)
    params = jax.tree.map(lambda x: x.astype(dtype), merged.params)
    model = sources[0].model(decoder, params)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    save(model, output, files={"merge.json": text})
    if sources[0].tokenizer is None:
        console.warn(f"{names[0]} has no tokenizer, so {output} has none")
    use = f"tpmm sample {output}", "tpmm.load"
    if rewards:
        use = f"--set scorer.name=reward:{output}   in tpmm train", "tpmm.load_reward"
    console.next_steps([use[0], f'{use[1]}("{output}")   in Python'])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(run, parse_args(argv))
