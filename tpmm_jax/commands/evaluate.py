"""Compares policies on prompts: tpmm evaluate runs/smollm2 --prompts FILE ...

Exit codes: 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped.
"""

import argparse
import io
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tpmm_jax.commands._candidates import (
    add_prompts,
    add_results,
    find_candidates,
    parse_labels,
    probe,
)
from tpmm_jax.commands._line import (
    Parser,
    add_base,
    add_sampling,
    add_timeout,
    check_all,
    check_least,
    guarded,
    sampling_of,
    timeout_of,
)
from tpmm_jax.commands._rows import add_row_options, row_options
from tpmm_jax.config.fields import check_types, set_field
from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import load_rows
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import cut_warning
from tpmm_jax.log.comparison import comparison_table
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.jsonl import plain
from tpmm_jax.log.versions import versions
from tpmm_jax.loop.compare import Candidate, Settings, compare
from tpmm_jax.loop.judging import unread_warning
from tpmm_jax.loop.voice import Voice
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.rewards import Raters, ScorerConfig, read_name
from tpmm_jax.scoring import JudgeConfig, load_raters
from tpmm_jax.stopping import TIMEOUT
from tpmm_jax.store.files import write_json
from tpmm_jax.weights.saving import check_output

DESCRIPTION = """\
Compare policies: sample the same prompts from each with the same random keys, score the
answers, and give every number with its 95 % interval over prompts.

MODEL is a Hugging Face directory, a .gguf file, a hub id (org/name) or a step of a run
(runs/x/trajectory@2). A run's workdir (runs/x) means all its steps. Win rates and KL
are against the baseline, by default the first model (of a run: theta_0).
"""
EPILOG = """\
examples:
  tpmm evaluate runs/smollm2 --prompts held_out.jsonl --scorer my_scores:reward
  tpmm evaluate runs/a/trajectory@4 runs/b/trajectory@4 --prompts p.jsonl \\
      --scorer my_scores:reward --also fluent=my_scores:fluency --output out
  tpmm evaluate new --baseline old --prompts p.jsonl --judge careful=my_judges:judge

A scorer is a function (prompts, responses) -> [B, S] numbers, higher is better. A judge
is a function (prompts, first, second) -> [B] numbers in [0, 1], the share for the first
answer; it is asked in both orders. reward:SOURCE is a model that scores, judge:SOURCE
one that judges (docs/rewards.md). None of them sees who wrote what. Warnings say where
the reward rose while an independent measure fell, and where KL or length ran away.

The table (with --json the summary) goes to standard output, everything else to standard
error. In the summary, as in a run's metrics, "-inf" and "inf" are bounds of an interval
that is open because there are too few prompts or the scores hardly differ.
"""

LEAST = {"num_samples": 1, "batch_size": 1, "limit": 1, "seed": 0}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm evaluate", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+")
    add_prompts(parser)
    add(
        "--baseline",
        metavar="MODEL",
        help="default: the first MODEL, theta_0 of a run. A workdir given here means "
        "its newest policy",
    )
    add_base(parser)
    add("--scorer", metavar="M:F", help="module:function, the reward")
    for name, what in (("also", "a further scorer"), ("judge", "a judge")):
        add(
            f"--{name}",
            action="append",
            default=[],
            metavar="LABEL=M:F",
            help=f"{what}; repeatable",
        )
    add(
        "--judge-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="how a judge:SOURCE is asked and read: a field of the config's section "
        "judge, such as template_file=FILE; repeatable",
    )
    add_timeout(parser, f"{TIMEOUT:g}")
    add("--pairs", metavar="FILE", help="preference pairs: accuracy on them")
    add("--drop-bad-rows", action="store_true", help="drop bad rows of --pairs")
    add_row_options(add, pairs=True)
    add_sampling(parser)
    add_results(parser, "new folder for all rows and summary.json")
    return parser.parse_args(argv)


def read_judge(args: argparse.Namespace) -> JudgeConfig:
    """Returns how models that judge are asked and read."""
    config = JudgeConfig()
    for text in args.judge_option:
        try:
            config = set_field(config, text)
        except BadInput as error:
            said = str(error).replace("--set", "--judge-option")
            said = said.replace("loss.beta=0.2", "max_new_tokens=64")
            raise BadInput(said) from None
    check_types(config, "judge.")
    judges, scorers = (
        parse_labels(getattr(args, name), f"--{name}").values()
        for name in ("judge", "also")
    )
    config.validate([args.scorer, *scorers, *judges])
    return config


def read_raters(args: argparse.Namespace) -> Raters:
    """Returns scorers and judges; raises BadInput where there is none."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if not (args.scorer or args.also or args.judge):
        raise BadInput(
            "nothing rates the answers: give --scorer module:function, --also "
            "LABEL=module:function or --judge LABEL=module:function"
        )
    timeout = timeout_of(args, TIMEOUT)
    return load_raters(
        ScorerConfig(
            name=args.scorer and read_name(args.scorer, "--scorer"), timeout=timeout
        ),
        {
            label: read_name(name, f"--also {label}")
            for label, name in parse_labels(args.also, "--also").items()
        },
        parse_labels(args.judge, "--judge"),
        scorer_field="--scorer",
        scorers_field="--also",
        judges_field="--judge",
        timeout=timeout,
        timeout_option="--timeout",
        judge=read_judge(args),
        mesh=make_mesh(MeshConfig()),
    )


def read_pairs(
    args: argparse.Namespace, baseline: Candidate, console: RunConsole
) -> list[PairRow]:
    """Returns preference pairs in the baseline's tokens; cut as a run's would be."""
    if args.pairs is None:
        return []
    model = baseline.found
    half = min(512, model.config.max_positions // 2)
    data = DataConfig(
        split=args.split,
        chat=args.chat,
        max_prompt_length=half,
        max_completion_length=half,
        on_bad_rows="drop" if args.drop_bad_rows else "refuse",
        **row_options(args),
    )
    codec = make_codec(model.config, model.tokenizer, data)
    return load_rows(args.pairs, data, codec, note=console.note, warn=console.warn)


def warn_other_tokens(candidates: Sequence[Candidate], console: RunConsole) -> None:
    """Says what is left out of models that read texts otherwise."""
    for other in candidates:
        if not other.same_tokens:
            console.warn(
                f"{other.name} has a different tokenizer from {candidates[0].name}: KL "
                "between them is not defined and is left out, as are length and "
                "accuracy on pairs"
            )


def evaluate(args: argparse.Namespace, console: RunConsole) -> int:
    """Runs one command line; everything is checked before a model is loaded."""
    output = None if args.output is None else pathlib.Path(args.output)
    sampling = sampling_of(args, args.max_new_tokens)
    _, _, raters, _ = check_all(
        lambda: check_least(args, LEAST),
        lambda: sampling.validate("evaluate"),
        lambda: read_raters(args),
        lambda: None if output is None else check_output(output),
    )
    candidates = find_candidates(
        args,
        console,
        sampling.max_new_tokens,
        pairs=args.pairs is not None,
        baseline=args.baseline,
        keep=raters.columns(),
    )
    warn_other_tokens(candidates, console)
    if raters.judges and len(candidates) < 2:
        raise BadInput("a judge compares: give two MODELs, or --baseline")
    pairs = read_pairs(args, candidates[0], console)
    probe(raters, candidates[0], args.num_samples, sampling.max_new_tokens)
    settings = Settings(
        sampling=sampling,
        raters=raters,
        num_samples=args.num_samples,
        seed=args.seed,
        batch_size=args.batch_size,
        pairs=pairs,
        consecutive=len(args.models) == 1 and args.baseline is None,
        output=output,
    )
    voice = Voice(console)
    with voice.stop:
        measures, warnings = compare(candidates, settings, voice)
    cuts = {row["name"]: row["length/cut"] for row in measures}
    cut = cut_warning(cuts, "--max-new-tokens", sampling.max_new_tokens)
    summary = {
        "prompts": args.prompts,
        "num_prompts": len(candidates[0].prompts.ids),
        "baseline": candidates[0].source,
        "options": {k: v for k, v in vars(args).items() if k not in ("output", "json")},
        "versions": versions(),
        "models": [{k: _plain(k, v) for k, v in row.items()} for row in measures],
        "watch": warnings,
    }
    if output is not None:
        write_json(output / "summary.json", summary)
    if args.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return 0
    print_table(measures, candidates[0].name)
    unread = unread_warning({row["name"]: row for row in measures})
    for text in (*warnings, cut, unread):
        if text:
            console.warn(text)
    return 0


def print_table(measures: Sequence[Mapping[str, Any]], baseline: str) -> None:
    """Prints the table on the standard output, which is the result's alone.

    As text: rich itself would end the process with 1 where a reader has seen enough.
    """
    width = shutil.get_terminal_size((100, 24)).columns
    text = io.StringIO()
    RunConsole(file=text, width=width).show(comparison_table(measures, baseline, width))
    print(text.getvalue(), end="")


def _plain(name: str, value: Any) -> Any:
    return value if isinstance(value, dict) else plain(name, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(evaluate, parse_args(argv), result_alone=True)
