"""Merges a mixture's experts: tpmm merge_experts runs/umm --output dense

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
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.commands._experts_card import MERGED, made_card
from tpmm_jax.commands._line import flag, guarded
from tpmm_jax.commands._merges import warn_if_faint
from tpmm_jax.commands._rows import row_options
from tpmm_jax.commands.options.merge_experts import LEARNING, parse_args
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import accuracy_interval
from tpmm_jax.evaluation.pair_rewards import log_loss
from tpmm_jax.facade import codec_of, kept_start_text, merge_pairs
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.versions import versions
from tpmm_jax.merging import (
    ExpertMergeConfig,
    ExpertPairs,
    ExpertsContext,
    choose_experts,
    dense_config,
    dense_decoder,
    expert_pairs,
    pair_margins,
    signal_to_rounding,
)
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.reward_runs.held_out import held_out_rows
from tpmm_jax.store import tree_digest
from tpmm_jax.weights.hub import REWARD, TRAJECTORY_STEP
from tpmm_jax.weights.loading import check_dtype, resolve_any
from tpmm_jax.weights.saving import check_output, save
from tpmm_jax.weights.source import Source


def read_config(args: argparse.Namespace) -> ExpertMergeConfig:
    """Returns how the experts are weighed, validated."""
    given = {n: getattr(args, n) for n in LEARNING if getattr(args, n) is not None}
    config = ExpertMergeConfig(rule=args.rule, **given)
    config.validate(flag)
    return config


def find_pairs(
    args: argparse.Namespace,
    config: ExpertMergeConfig,
    source: Source,
    console: RunConsole,
) -> tuple[list[str], ExpertPairs] | None:
    """Returns the pairs with where they are from; None: there are none, nor needed.

    Raises:
      BadInput: none for a rule that needs them, or rows that cannot be used.
    """
    rows = list[PairRow]()
    match = TRAJECTORY_STEP.fullmatch(source.origin["source"])
    if args.pairs:
        names = list(args.pairs)
        more: dict[str, Any] = row_options(args)
        if args.drop_bad_rows:
            more["on_bad_rows"] = "drop"
        for name in names:
            data = RewardDataConfig(
                pairs=name, chat=bool(args.chat), max_length=2**31 - 1, **more
            )
            rows += merge_pairs(source, data, note=console.note, warn=console.warn)
    elif not config.needs_pairs:
        return None
    elif match is not None and match["kept"] == REWARD:
        workdir = pathlib.Path(match["workdir"] or ".")
        rows = held_out_rows(workdir, source, console)
        names = [f"{workdir.absolute().name}: its held-out pairs"]
    else:
        raise BadInput(
            f"--rule {config.rule} needs pairs, and {args.source} is no run with "
            "held-out ones; give --pairs, or use --rule uniform"
        )
    console.note(f"{len(rows):,} pairs from {', '.join(names)}")
    limit, pad_id = source.config.max_positions, codec_of(source).pad_id
    return names, expert_pairs(rows, config, limit, pad_id)


def weigh(context: ExpertsContext, console: RunConsole) -> np.ndarray:
    """Returns the rule's weights, with a bar over the pairs that are read."""
    config, pairs = context.config, context.pairs
    if not config.needs_pairs or pairs is None:
        return choose_experts(context)
    total, size = len(pairs.rows), min(config.batch_size, len(pairs.rows))
    if config.rule == "learned":
        total += config.steps * size + 2 * len(pairs.held_rows)
    with console.phase(config.rule, total, "pairs") as bar:
        context.advance = bar.advance
        context.step = lambda loss: bar.advance(size, loss=f"{loss:.4f}")
        return choose_experts(context)


def score(
    context: ExpertsContext, weights_LX: np.ndarray, console: RunConsole
) -> list[dict[str, Any]]:
    """Returns accuracy and loss of the mixture and of its merges by each rule."""
    pairs, rule = context.pairs, context.config.rule
    if pairs is None:
        return []
    rows, table = pairs.rows, pairs.table
    tried = {"uniform": np.full(weights_LX.shape, 1 / weights_LX.shape[1])}
    if rule == "learned":
        rows, table = pairs.held_rows, pairs.held_out
        tried["gating"] = np.asarray(context.report["start"])
        tried["learned"] = np.asarray(context.report["learned"])
    tried[rule] = tried.get(rule, weights_LX)
    dense, found = dense_decoder(context.decoder), []
    with console.phase("score", (len(tried) + 1) * len(rows), "pairs") as bar:
        for name in ("the mixture", *tried):
            decoder, params = context.decoder, context.params
            if name in tried:
                decoder, params = dense, context.merge(tried[name])
            margins = pair_margins(decoder, params, table, bar.advance)
            accuracy = accuracy_interval(margins, [row.group for row in rows])
            found.append(
                {
                    "model": name,
                    "accuracy": accuracy.mean,
                    "low": accuracy.low,
                    "high": accuracy.high,
                    "loss": log_loss(margins),
                }
            )
    return found


def show(
    context: ExpertsContext,
    weights_LX: np.ndarray,
    scores: Sequence[dict[str, Any]],
    console: RunConsole,
) -> None:
    """Prints the weights by layer, and the scores."""
    experts = context.decoder.config.experts
    assert experts is not None
    places = experts.places(context.decoder.config.num_layers)
    rows = [
        (f"layer {place}", ", ".join(f"{w:.3f}" for w in row))
        for place, row in zip(places, weights_LX)
    ]
    console.header(f"weights of the routed experts, {context.config.rule}", rows)
    if not scores:
        return
    pairs = context.pairs
    assert pairs is not None
    number = len(pairs.held_rows) or len(pairs.rows)
    lines = [
        (
            s["model"],
            f"accuracy {s['accuracy']:.3f} [{s['low']:.3f}, {s['high']:.3f}]  loss "
            f"{s['loss']:.4f}",
        )
        for s in scores
    ]
    kind = "held-out pairs" if pairs.held_rows else "pairs"
    console.header(f"on {number:,} {kind}", lines)
    if context.report.get("kept") == "start":
        console.warn(kept_start_text(context.report))


def record(
    args: argparse.Namespace,
    source: Source,
    context: ExpertsContext,
    weights_LX: np.ndarray,
    names: Sequence[str],
) -> dict[str, Any]:
    """Returns the content of merge_experts.json but for digests, ratios and scores."""
    experts, pairs = source.config.experts, context.pairs
    assert experts is not None
    content = {
        "source": source.origin | {"digest": tree_digest(context.params)},
        "rule": context.config.rule,
        "layers": list(experts.places(source.config.num_layers)),
        "experts": {
            "count": experts.count,
            "top_k": experts.top_k,
            "shared": experts.shared,
        },
        "weights": weights_LX.tolist(),
        "dtype": check_dtype(args.dtype),
        "note": "our reconstruction of UMM-RM (arXiv 2512.00724)",
        "versions": versions(),
    }
    if pairs is not None:
        content["pairs"] = {
            "sources": [pathlib.Path(name).name for name in names],
            "used": len(pairs.rows),
            "held_out": len(pairs.held_rows),
        }
    if context.config.rule == "learned":
        content["learning"] = asdict(context.config) | context.report
    return content


def ratios_of(context: ExpertsContext, params: Params) -> dict[str, float | None]:
    """Returns signal to rounding by dtype of what experts change of the shared one.

    None: nothing is rounded.
    """
    shared, found = context.params["layers"]["mlp"], dict[str, float | None]()
    for dtype in ("float32", "bfloat16"):
        ratio = signal_to_rounding(params["layers"]["mlp"], shared, dtype)
        found[dtype] = ratio if math.isfinite(ratio) else None
    return found


def open_mixture(
    args: argparse.Namespace, config: ExpertMergeConfig, console: RunConsole
) -> tuple[Source, ExpertsContext, list[str]]:
    """Returns the mixture, found and read, and where the pairs are from.

    Raises:
      BadInput: its experts cannot be merged, or pairs that cannot be used.
    """
    (source,) = resolve_any([args.source])
    dense = Decoder(dense_config(source.config, args.source))
    each = 2 if check_dtype(args.dtype) == "bfloat16" else 4
    check_output(args.output, each * dense.num_params)
    names, pairs = find_pairs(args, config, source, console) or ([], None)
    mesh = None if args.fsdp == 1 else make_mesh(MeshConfig(fsdp=args.fsdp))
    decoder = Decoder(source.config, mesh=mesh)
    with console.phase("read", 1, "models") as bar:
        params = source.read(decoder, "float32")
        bar.advance(1)
    return source, ExpertsContext(config, decoder, params, pairs), names


def run(args: argparse.Namespace, console: RunConsole) -> None:
    """Checks everything, weighs, merges, writes."""
    dtype, config = check_dtype(args.dtype), read_config(args)
    output = pathlib.Path(args.output)
    check_output(output)
    source, context, names = open_mixture(args, config, console)
    weights_LX = weigh(context, console)
    scores = score(context, weights_LX, console)
    show(context, weights_LX, scores, console)
    content = record(args, source, context, weights_LX, names)
    params = context.merge(weights_LX)
    ratios = ratios_of(context, params)
    content |= {"digest": tree_digest(params), "scores": scores}
    content["signal_to_rounding"] = ratios
    if dtype == "bfloat16":
        change = "what the routed experts change of the shared one"
        warn_if_faint(console, ratios[dtype] or 0.0, "the merge", change)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    model = source.model(dense_decoder(context.decoder), params)
    files = {
        MERGED: json.dumps(content, indent=2, sort_keys=True) + "\n",
        "README.md": made_card(output, model, content),
    }
    with console.phase("write", 1, "models") as bar:
        save(model, output, files=files)
        bar.advance(1)
    if source.tokenizer is None:
        console.warn(f"{args.source} has no tokenizer, so {output} has none")
    console.next_steps(
        [
            f"--set scorer.name=reward:{output}   in tpmm train",
            f'tpmm.load_reward("{output}")   in Python',
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(run, parse_args(argv))
