"""Merges checkpoints: tpmm merge_checkpoints runs/x --uniform --output merged

Exit codes: 0 done, 1 not finite, 2 bad input, 3 corrupt checkpoint, 4 storage, 75
stopped.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tpmm_jax.commands._learning import Learned, Split, split_rows
from tpmm_jax.commands._line import check_all, check_least, flag, guarded
from tpmm_jax.commands._merges import (
    Merged,
    Target,
    expand,
    merge_given,
    merge_learned,
    open_sources,
    warn_if_faint,
)
from tpmm_jax.commands._rows import row_options
from tpmm_jax.commands.options.merge_checkpoints import parse_args
from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import load_rows
from tpmm_jax.errors import BadInput
from tpmm_jax.facade import sum_remark
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.versions import versions
from tpmm_jax.merging import RULES, ReferenceConfig, nothing_learned, signal_text
from tpmm_jax.merging.config import UNREAD
from tpmm_jax.merging.rules import theta_0_weight
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.store.files import storage_errors
from tpmm_jax.weights.description import write_description
from tpmm_jax.weights.loading import check_dtype
from tpmm_jax.weights.saving import check_output, whole_directory
from tpmm_jax.weights.source import Source

# Options of --learn that are fields of ReferenceConfig.
LEARNING = (
    *("fit", "anchor_share", "granularity", "objective", "beta"),
    *("steps", "learning_rate", "batch_size"),
)


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
    changes = {n: getattr(args, n) for n in LEARNING if getattr(args, n) is not None}
    config = ReferenceConfig(rule="learned", **changes)
    config.validate(tuple(RULES), flag)

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
        "digest": merged.digest,
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
            **{n: getattr(config, n) for n in LEARNING if n not in UNREAD[config.fit]},
            "anchor_share": theta_0_weight(config),
            "seed": args.seed,
        }
        content["fit"] = merged.learned.fit
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
        show_fit(merged.learned.fit, names, console)
        show_scores(merged.learned, console)
    for dtype, ratio in merged.ratios.items():
        console.note(signal_text(ratio, dtype))


def show_fit(fit: Mapping[str, Any], names: Sequence[str], console: RunConsole) -> None:
    """Says which models a fit on margins left out, and why it learned nothing."""
    for k, why in fit.get("left_out", {}).items():
        console.warn(f"{names[int(k)]} is left out of the merge: {why}")
    if why := nothing_learned(fit, "pairs learned on"):
        console.warn(f"{why}; uniform weights are used")


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
    if learning is not None and len(names) < 3 and theta_0_weight(learning) is not None:
        raise BadInput(
            f"--learn weights the models after the first, and {names[1]} is the only "
            "one; give more models, or use --fit adam without --anchor-share, or "
            "--weights"
        )
    copies = len(names) + 1 if args.learn else 1
    check_output(output, 4 * copies * Decoder(config).num_params)
    mesh = None if args.fsdp == 1 else make_mesh(MeshConfig(fsdp=args.fsdp))
    decoder = Decoder(config, mesh=mesh)
    with whole_directory(output) as whole:
        target = Target(whole, dtype)
        if learning is not None:
            rows = read_rows(args, sources[0], console)
            merged = merge_learned(
                sources, names, rows, decoder, learning, target,
                seed=args.seed, console=console,
            )  # fmt: skip
        else:
            merged = merge_given(sources, weights, decoder, target, console)
            if remark := sum_remark(weights):
                console.warn(remark)
        show(merged, names, console)
        content = record(args, learning, sources, merged)
        if dtype == "bfloat16":
            change = f"its change to {names[0]}"
            warn_if_faint(console, merged.ratios[dtype], "the merge", change)
        first = sources[0]
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        with storage_errors(output):
            write_description(config, first.tokenizer, dtype, whole, first.generation)
            (whole / "merge.json").write_text(text, encoding="utf-8")
    if sources[0].tokenizer is None:
        console.warn(f"{names[0]} has no tokenizer, so {output} has none")
    use = f"tpmm sample {output}", "tpmm.load"
    if rewards:
        use = f"--set scorer.name=reward:{output}   in tpmm train", "tpmm.load_reward"
    console.next_steps([use[0], f'{use[1]}("{output}")   in Python'])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(run, parse_args(argv))
