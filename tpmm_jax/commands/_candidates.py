"""The models of a command line that samples the same prompts from each of them."""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tpmm_jax.commands._line import timeout_of
from tpmm_jax.commands._rows import row_options
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.errors import BadInput
from tpmm_jax.facade import codec_of
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.compare import Candidate, encode_for
from tpmm_jax.loop.prompts import read_prompts
from tpmm_jax.loop.theta_0 import check_codec
from tpmm_jax.rewards import Raters, check_label
from tpmm_jax.scoring import check_context
from tpmm_jax.stopping import TIMEOUT
from tpmm_jax.weights.kept import committed_steps, run_workdir
from tpmm_jax.weights.loading import resolve_all

# Where there are no prompts: whether models read texts alike.
PROBE = [Prompt("Hello there!", "a greeting")]


def parse_labels(given: Sequence[str], option: str) -> dict[str, str]:
    """Returns {label: "module:function"} of options like LABEL=m:f."""
    found: dict[str, str] = {}
    for text in given:
        label, equals, name = text.partition("=")
        if not equals or not name:
            raise BadInput(f"{option} {text}: wanted LABEL=module:function")
        check_label(label, option)
        if label in found:
            raise BadInput(f"{option} {text}: the label {label} is given twice")
        found[label] = name
    return found


def recorded_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that a result depends on."""
    where = ("output", "json", "compilation_cache")
    return {k: v for k, v in vars(args).items() if k not in where}


def named_sources(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Returns (name, source) of every model, the baseline first.

    A run's policies are theta_0, theta_1, ...; with its folder, where several models
    would have one name.
    """
    found: dict[str, tuple[str, str]] = {}
    for number, model in enumerate([*([baseline] if baseline else []), *models]):
        workdir = run_workdir(pathlib.Path(model))
        if workdir is None:
            found.setdefault(model, (model, model))
            continue
        steps = committed_steps(workdir)
        if baseline and number == 0:
            steps = steps[-1:]
        for k in steps:
            name = f"theta_{k}"
            source = f"{workdir}/trajectory@{k}"
            found.setdefault(source, (name, f"{workdir} {name}"))
    short = [name for name, _ in found.values()]
    alone = len(set(short)) == len(short)
    return [(name if alone else full, s) for s, (name, full) in found.items()]


def find_candidates(
    args: argparse.Namespace,
    console: RunConsole,
    room: int,
    *,
    pairs: bool = False,
    baseline: str | None = None,
    keep: Mapping[str, str] | None = None,
) -> list[Candidate]:
    """Returns all models, resolved, with the prompts in their tokens.

    Args:
      room: tokens that every answer may take; 0 where none is drawn.
      pairs: whether the command reads pairs too.
      baseline: a model that stands first.
      keep: columns beside the prompts that scorers ask for.
    """
    rows = row_options(args, pairs=pairs)
    data = DataConfig(
        prompt_field=args.prompt_field,
        split=args.split,
        chat=args.chat,
        timeout=timeout_of(args, TIMEOUT),
        **rows,
    )
    prompts: Sequence[Prompt] = ()
    if args.prompts is not None:
        found = read_prompts(args.prompts, "--prompts", data, console.note, keep=keep)
        prompts = found[: args.limit]
    named = named_sources(args.models, baseline)
    models = resolve_all([source for _, source in named], args.base)
    codecs = [codec_of(model, chat=args.chat) for model in models]
    for (_, source), codec in zip(named, codecs):
        check_codec(codec, source)
    limit = min(model.config.max_positions for model in models) - room
    if limit < 1:
        raise BadInput(
            f"--max-new-tokens is {room}; the models have {limit + room} positions: "
            "give fewer"
        )
    vocabulary, candidates = codecs[0].tokenizer.get_vocab(), list[Candidate]()
    first: list[list[int]] = []
    for (name, source), model, codec in zip(named, models, codecs):
        codec = dataclasses.replace(codec, max_prompt_length=limit)
        encoded = encode_for(codec, prompts, console)
        read = encode_for(codec, PROBE, console) if not prompts else encoded
        same = not candidates or (
            read.ids == first and codec.tokenizer.get_vocab() == vocabulary
        )
        first = first if candidates else read.ids
        number = len(candidates)
        candidates.append(Candidate(number, name, source, model, codec, encoded, same))
    return candidates


def probe(
    raters: Raters, candidate: Candidate, num_samples: int, new_tokens: int
) -> None:
    """Asks every rater once, before anything expensive.

    Raises:
      BadInput: one does not answer as it should, or could not read the answers.
    """
    prompts = candidate.prompts
    check_context(raters, prompts.asked, new_tokens)
    known = prompts.known(candidate.codec, [0], [[]])
    raters.probe(prompts.texts[0], num_samples, known)
