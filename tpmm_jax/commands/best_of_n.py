"""Gold against proxy under best of n: tpmm best_of_n POLICY --prompts FILE ...

Exit codes: 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped.
"""

import argparse
import contextlib
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
from tpmm_jax.commands.options.best_of_n import ANSWERS_AT_ONCE, parse_args
from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import cut_share, cut_warning
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.curves import curve_tables
from tpmm_jax.log.jsonl import plain
from tpmm_jax.log.versions import versions
from tpmm_jax.loop.compare import Candidate, Settings
from tpmm_jax.loop.pools import check_folder, draw_pools, measure_pools
from tpmm_jax.loop.voice import Voice
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.report.curves import write_curves
from tpmm_jax.rewards import SCORER, SCORERS, Raters, ScorerConfig, read_name
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.scoring import load_raters
from tpmm_jax.stopping import TIMEOUT
from tpmm_jax.store.files import RunLock, write_json

LEAST = {"n": 2, "samples": 2, "batch_size": 1, "limit": 1, "seed": 0}
# What the only proxy is called where it has no label.
PROXY = "proxy"


def read_proxies(given: Sequence[str], gold: str) -> dict[str, str]:
    """Returns {label: name} of the proxies.

    Raises:
      BadInput: several without labels, or one that is the gold scorer itself.
    """
    if len(given) == 1 and not _is_labelled(given[0]):
        found = {PROXY: given[0]}
    elif bare := [text for text in given if not _is_labelled(text)]:
        raise BadInput(f"--proxy {bare[0]}: of several each has a label, LABEL=NAME")
    else:
        found = parse_labels(given, "--proxy")
    for label, name in found.items():
        if _normal(name) == _normal(gold):
            raise BadInput(
                f"--proxy {label}={name} is the gold scorer itself: its curve cannot "
                "turn down; give --gold a scorer that nothing was trained on or "
                "chosen by"
            )
    return found


def _is_labelled(text: str) -> bool:
    label, equals, _ = text.partition("=")
    return bool(equals) and ":" not in label


def _normal(name: str) -> str:
    """A name with one spelling of the path in it."""
    kind, _, rest = name.partition(":")
    return f"{kind}:{os.path.normpath(rest)}"


def read_raters(args: argparse.Namespace, proxies: Mapping[str, str]) -> Raters:
    """Returns the gold scorer as the labelling one, the proxies as further ones."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    timeout = timeout_of(args, TIMEOUT)
    gold = ScorerConfig(name=read_name(args.gold, "--gold"), timeout=timeout)
    return load_raters(
        gold,
        {label: read_name(name, "--proxy") for label, name in proxies.items()},
        {},
        scorer_field="--gold",
        scorers_field="--proxy",
        timeout=timeout,
        timeout_option="--timeout",
        mesh=make_mesh(MeshConfig()),
    )


def check_sizes(args: argparse.Namespace) -> None:
    """Refuses a pool that is smaller than n."""
    check_least(args, LEAST)
    if args.samples < args.n:
        raise BadInput(
            f"--samples is {args.samples} and --n {args.n}: the best of {args.n} needs "
            f"at least as many answers, and {2 * args.n} for a result to rely on"
        )


def check_sampling(sampling: SamplingConfig) -> None:
    """Refuses draws that give one answer again and again."""
    sampling.validate(flag)
    if sampling.temperature == 0 or sampling.top_k == 1:
        option = "--temperature 0" if sampling.temperature == 0 else "--top-k 1"
        raise BadInput(
            f"{option} draws the same answer every time, so there is nothing to choose "
            "from; draw with the temperature that the policy is used with"
        )


def best_of_n(args: argparse.Namespace, console: RunConsole) -> int:
    """Runs one command line; everything is checked before a model is loaded."""
    output = None if args.output is None else pathlib.Path(args.output)
    args.samples = 2 * args.n if args.samples is None else args.samples
    sampling = sampling_of(args, args.max_new_tokens)
    proxies, *_ = check_all(
        lambda: read_proxies(args.proxy, args.gold),
        lambda: check_sizes(args),
        lambda: check_sampling(sampling),
        lambda: None if output is None else check_folder(output),
    )
    raters = read_raters(args, proxies)
    candidates = find_candidates(
        args, console, sampling.max_new_tokens, keep=raters.columns()
    )
    probe(raters, candidates[0], args.samples, sampling.max_new_tokens)
    settings = Settings(
        sampling=sampling,
        raters=raters,
        num_samples=args.samples,
        seed=args.seed,
        batch_size=args.batch_size or max(1, ANSWERS_AT_ONCE // args.samples),
        output=output,
    )
    if args.samples < 2 * args.n:
        console.warn(
            f"--samples {args.samples} is below twice --n: near n = {args.n} few "
            f"different choices are left; draw {2 * args.n} for a result to rely on"
        )
    names = {SCORER: args.gold} | {SCORERS + k: name for k, name in proxies.items()}
    voice = Voice(console)
    with RunLock(output) if output else contextlib.nullcontext(), voice.stop:
        pools = draw_pools(candidates, settings, names, voice)
        summary = summarise(args, candidates, pools, proxies)
        if output is not None:
            write_json(output / "best_of_n.json", _plain(summary))
            for path in write_curves(output, summary):
                console.note(f"wrote {path}")
    show(summary, console, as_json=args.json)
    return 0


def summarise(
    args: argparse.Namespace,
    candidates: Sequence[Candidate],
    pools: Mapping[str, Sequence[Rollout]],
    proxies: Mapping[str, str],
) -> dict[str, Any]:
    """Returns what best_of_n.json holds."""
    curves = measure_pools(pools, list(proxies), args.n)
    shares = {}
    for one in candidates:
        ids = [ids for row in pools[one.name] for ids in row.response_ids]
        shares[one.name] = cut_share(ids, one.codec.eos_ids)
    cut = cut_warning(shares, "--max-new-tokens", args.max_new_tokens)
    return {
        "prompts": args.prompts,
        "num_prompts": len(candidates[0].prompts.ids),
        "n": args.n,
        "samples": args.samples,
        "gold": args.gold,
        "proxies": dict(proxies),
        "policies": [{"name": x.name, "source": x.found.origin} for x in candidates],
        "curves": curves,
        "warnings": find_faults(curves, proxies) + [cut] * bool(cut),
        "options": recorded_options(args),
        "versions": versions(),
    }


def find_faults(
    curves: Sequence[Mapping[str, Any]], proxies: Mapping[str, str]
) -> list[str]:
    """Returns warnings of curves that do not say what they seem to."""
    found = []
    for curve in curves:
        name = f"{curve['policy']} by {proxies[curve['proxy']]}"
        if curve["same_as_gold"]:
            found.append(f"{name}: the proxy gives every answer its gold score")
        elif curve["ties"] > 0.5:
            found.append(
                f"{name}: {curve['ties']:.0%} of the answers tie with another one to "
                "their prompt; the proxy chooses among these blindly"
            )
    for policy in dict.fromkeys(curve["policy"] for curve in curves):
        repeats = next(c["repeats"] for c in curves if c["policy"] == policy)
        if repeats > 0.5:
            found.append(
                f"{policy}: {repeats:.0%} of the answers repeat another one to their "
                "prompt, so that the KL is well below its bound"
            )
    return found


def show(summary: Mapping[str, Any], console: RunConsole, *, as_json: bool) -> None:
    """Prints the result on the standard output, which is its alone."""
    if as_json:
        print(json.dumps(_plain(summary), indent=2, ensure_ascii=False))
        return
    width = shutil.get_terminal_size((100, 24)).columns
    text = io.StringIO()
    tables = curve_tables(summary["curves"], width)
    RunConsole(file=text, width=width).show(tables)
    print(text.getvalue(), end="")
    for warning in summary["warnings"]:
        console.warn(warning)


def _plain(value: Any) -> Any:
    """Numbers as JSON holds them: nan and the infinities become strings."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return plain("", value) if isinstance(value, float) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(best_of_n, parse_args(argv), result_alone=True)
