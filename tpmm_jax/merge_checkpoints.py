"""Merges checkpoints: tpmm merge_checkpoints runs/x --uniform --output merged

Exit codes: 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax

from tpmm_jax.commands.learning import Learned, Rows, encode, split_rows
from tpmm_jax.commands.line import Parser, guarded, versions
from tpmm_jax.commands.merges import (
    FAINT,
    Merged,
    expand,
    merge_given,
    merge_learned,
    open_sources,
)
from tpmm_jax.data.pairs import load_pairs
from tpmm_jax.errors import BadInput
from tpmm_jax.loading import (
    Model,
    Source,
    check_dtype,
    check_output,
    end_ids,
    save,
)
from tpmm_jax.merging import RULES, ReferenceConfig
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.report.console import RunConsole
from tpmm_jax.store import tree_digest

DESCRIPTION = """\
Merge checkpoints of one architecture, in float32:
theta_0 + sum_k w_k (theta_k - theta_0).

MODEL is what tpmm sample takes. A run's workdir stands for all of its policies, and
runs/x/trajectory@1..3 for three of them. The first model is theta_0, the anchor. The
output is a Hugging Face directory; its merge.json records sources, digests and weights.
"""
EPILOG = """\
examples:
  tpmm merge_checkpoints runs/a/trajectory@0..2 --weights 0.5 0.3 0.2 --output merged
  tpmm merge_checkpoints runs/a runs/b/trajectory@4 --uniform --output merged
  tpmm merge_checkpoints runs/a --learn pairs.jsonl --granularity layer --output merged

--learn fits softmax weights so that the merge, scored as a policy against theta_0,
prefers the chosen answers (our reconstruction of the fusion objective: docs/design.md).
A share of the prompts is held out; accuracy and loss are reported on those alone. Give
pairs that no checkpoint was trained on: those it was trained on flatter it.
pairs.jsonl: chosen and rejected, with a prompt or without; texts or message lists.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(
        prog="tpmm merge_checkpoints", description=DESCRIPTION, epilog=EPILOG
    )
    defaults, add = ReferenceConfig(), parser.add_argument
    add("models", nargs="+", metavar="MODEL")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--weights", type=float, nargs="+", metavar="W")
    how.add_argument("--uniform", action="store_true", help="1/K each")
    how.add_argument("--learn", metavar="PAIRS", help="learn them on preference pairs")
    add("--output", required=True, metavar="DIR", help="new, or empty")
    add("--dtype", default="float32", help="of the output: float32 or bfloat16")
    add("--fsdp", type=int, default=1, help="devices to split weights over; -1: all")
    some = parser.add_argument_group("with --learn")
    add = some.add_argument
    add("--granularity", choices=("model", "layer"), help="weights a model or a layer")
    add(
        "--objective",
        choices=("calibrated", "fixed"),
        help="fit D's scale, or not",
    )
    add("--steps", type=int, help=f"of Adam (default: {defaults.steps})")
    add("--beta", type=float, help=f"scale of D, or its start ({defaults.beta})")
    add("--learning-rate", type=float, help=f"default: {defaults.learning_rate}")
    add("--batch-size", type=int, help=f"pairs a step (default: {defaults.batch_size})")
    add("--holdout", type=float, help="share of prompts to report on (default: 0.2)")
    add("--seed", type=int, help="of the split and the batches (default: 0)")
    add(
        "--drop-bad-rows",
        action="store_const",
        const=True,
        help="of PAIRS, instead of an error",
    )
    add("--max-prompt-length", type=int, help="tokens (default: 512)")
    add("--max-completion-length", type=int, help="tokens (default: 512)")
    add(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="write pairs with the chat template (default: if there is one)",
    )
    args = parser.parse_args(argv)
    given = [a for a in some._group_actions if getattr(args, a.dest) is not None]
    if given and args.learn is None:
        parser.error(f"{given[0].option_strings[0]} needs --learn")
    return args


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
    config = ReferenceConfig(rule="learned", **changes)
    config.validate(tuple(RULES))
    holdout = 0.2 if args.holdout is None else args.holdout
    if not 0 < holdout < 1:
        raise BadInput(f"--holdout is {holdout}; use a share between 0 and 1")
    return config


def read_rows(args: argparse.Namespace, first: Source, console: RunConsole) -> Rows:
    """Returns the pairs of --learn as token ids, a share of the prompts held out."""
    tokenizer = first.tokenizer
    if tokenizer is None:
        raise BadInput(
            f"{first.origin['source']} has no tokenizer (tokenizer.json), which "
            "--learn needs to read the pairs; copy it into that directory"
        )
    pairs = load_pairs(
        args.learn, on_bad_rows="drop" if args.drop_bad_rows else "refuse"
    )
    chat = bool(tokenizer.chat_template) if args.chat is None else args.chat
    how = "with the chat template" if chat else "as they are, without a chat template"
    console.note(f"pairs are written {how}")
    limits = (args.max_prompt_length or 512, args.max_completion_length or 512)
    rows = encode(
        pairs,
        tokenizer,
        chat=chat,
        limits=limits,
        eos_ids=end_ids(first.config, tokenizer),
        console=console,
    )
    share = 0.2 if args.holdout is None else args.holdout
    return split_rows(rows, share, args.seed or 0)


def record(
    args: argparse.Namespace, sources: Sequence[Source], merged: Merged
) -> dict[str, Any]:
    """Returns the content of merge.json."""

    def number(ratio: float) -> float | None:
        return ratio if math.isfinite(ratio) else None

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
            "float32": number(merged.float32_ratio),
            "bfloat16": number(merged.bfloat16_ratio),
        },
        "versions": versions(),
    }
    if merged.learned is not None:
        granularity = args.granularity or "model"
        content["objective"] = {
            "note": "our reconstruction of the fusion objective",
            "pairs": pathlib.Path(args.learn).name,
            **asdict(learning_config(args)),
            "scale": merged.learned.scale,
            "seed": args.seed or 0,
        }
        content["granularity"] = granularity
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
        rows.append((name, text))
    console.header("weights", rows)
    if merged.learned is not None:
        show_scores(merged.learned, console)
    for dtype, ratio in (
        ("float32", merged.float32_ratio),
        ("bfloat16", merged.bfloat16_ratio),
    ):
        told = f"{ratio:,.3g}" if math.isfinite(ratio) else "nothing is rounded"
        console.note(f"signal to rounding, {dtype}: {told}")


def show_scores(learned: Learned, console: RunConsole) -> None:
    """Prints each model on the held-out pairs, and whether the merge is the best."""
    counts, rows = learned.counts, []
    for s in learned.scores:
        interval = f" [{s.low:.3f}, {s.high:.3f}]"
        rows.append((s.model, f"{s.accuracy:.3f}{interval}  loss {s.loss:.4f}"))
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
    if args.learn is not None:
        learning_config(args)
    sources = open_sources(names, console)
    config, output = sources[0].config, pathlib.Path(args.output)
    copies = len(names) + 1 if args.learn else 1
    check_output(output, 4 * copies * config.num_params)
    mesh = None if args.fsdp == 1 else make_mesh(MeshConfig(fsdp=args.fsdp))
    decoder = Decoder(config, mesh=mesh)
    if args.learn is not None:
        merged = merge_learned(
            sources,
            names,
            read_rows(args, sources[0], console),
            decoder,
            learning_config(args),
            seed=args.seed or 0,
            near=output,
            console=console,
        )
    else:
        merged = merge_given(sources, weights, decoder, console)
        if abs(sum(weights) - 1) > 1e-6:
            console.warn(f"the weights add up to {sum(weights):g}, not to 1")
    show(merged, names, console)
    content = record(args, sources, merged)
    if dtype == "bfloat16" and merged.bfloat16_ratio < FAINT:
        console.warn(
            "in bfloat16 much of the merge is rounded away: its change to "
            f"{names[0]} is only {merged.bfloat16_ratio:.2g} times the rounding error; "
            "use --dtype float32"
        )
    params = jax.tree.map(lambda x: x.astype(dtype), merged.params)
    origin = {"source": str(output)}
    model = Model(decoder, params, sources[0].tokenizer, origin)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    save(model, output, files={"merge.json": text})
    if sources[0].tokenizer is None:
        console.warn(f"{names[0]} has no tokenizer, so {output} has none")
    console.next_steps(
        [f"tpmm sample {output}", f'tpmm.load("{output}")   in Python and transformers']
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    args = parse_args(argv)
    console = RunConsole()
    return guarded(lambda: run(args, console), console)


if __name__ == "__main__":
    sys.exit(main())
