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

from tpmm_jax.commands._answers import sampling_of
from tpmm_jax.commands._candidates import (
    find_candidates,
    parse_labels,
    probe,
    recorded_options,
)
from tpmm_jax.commands._line import check_all, check_least, flag, guarded, timeout_of
from tpmm_jax.commands._rows import row_options
from tpmm_jax.commands.options.evaluate import parse_args
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

# Options that say nothing of pairs.
NEED_PROMPTS = (
    *("scorer", "also", "judge", "judge_option", "timeout", "num_samples", "seed"),
    "batch_size",
    *("max_new_tokens", "temperature", "top_p", "top_k", "limit", "prompt_field"),
)
LEAST = {"num_samples": 1, "batch_size": 1, "limit": 1, "seed": 0}


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


def check_alone(args: argparse.Namespace) -> None:
    """Refuses what nothing would read without prompts.

    Raises:
      BadInput: all of it, one line each; or there are no pairs either.
    """
    if args.pairs is None:
        raise BadInput("give --prompts FILE, --pairs FILE or both to compare on")
    usual = parse_args([*args.models, "--pairs", args.pairs])
    given = [n for n in NEED_PROMPTS if getattr(args, n) != getattr(usual, n)]
    if given:
        raise BadInput("\n".join(f"{flag(name)} needs --prompts" for name in given))


def read_raters(args: argparse.Namespace) -> Raters:
    """Returns scorers and judges; raises BadInput where there is none for prompts."""
    if args.prompts is None:
        check_alone(args)
        return Raters()
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
    alone = args.prompts is None
    _, _, raters, _ = check_all(
        lambda: check_least(args, LEAST),
        lambda: sampling.validate(flag),
        lambda: read_raters(args),
        lambda: None if output is None else check_output(output),
    )
    room = 0 if alone else sampling.max_new_tokens
    candidates = find_candidates(
        args, console, room,
        pairs=args.pairs is not None, baseline=args.baseline, keep=raters.columns(),
    )  # fmt: skip
    warn_other_tokens(candidates, console)
    if (alone or raters.judges) and len(candidates) < 2:
        what = "--pairs alone compares" if alone else "a judge compares answers"
        raise BadInput(f"{what}: give two MODELs, or --baseline")
    pairs = read_pairs(args, candidates[0], console)
    if not alone:
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
    cuts = {x["name"]: x["length/cut"] for x in measures if "length/cut" in x}
    cut = cut_warning(cuts, "--max-new-tokens", sampling.max_new_tokens)
    summary = {
        "prompts": args.prompts,
        "num_prompts": len(candidates[0].prompts.ids),
        "baseline": candidates[0].source,
        "options": recorded_options(args),
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
