"""What a data check takes from a run: its codec, scorer, prompts and demands."""

import argparse
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from tpmm_jax.commands._data_checks import Checked
from tpmm_jax.commands._line import timeout_of
from tpmm_jax.config import Config
from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import prepare_prompts
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.chunks import split_chunks
from tpmm_jax.loop.prompt_functions import prompt_file
from tpmm_jax.loop.prompts import plan_schedule, prompt_sources
from tpmm_jax.loop.setup import check_steps, run_lengths
from tpmm_jax.loop.theta_0 import check_codec
from tpmm_jax.rewards import NamedScorer, ScorerConfig, read_name
from tpmm_jax.scoring import load_scorer
from tpmm_jax.weights.loading import resolve, start_reward
from tpmm_jax.weights.tokenizer import read_tokenizer

T = TypeVar("T")


def as_run(
    config: Config | None, data: DataConfig, files: list[str], *, prompts: bool
) -> Config | None:
    """Returns the config of a run on these data; None if no run takes them."""
    if config is None or len(files) > 1:
        return None
    if (config.data.prompts if prompts else config.data.pairs) is None:
        return None
    if prompts:
        return replace(config, data=replace(data, prompts=files[0]))
    return replace(config, data=replace(data, pairs=files[0]))


def find_codec(
    model: str | None,
    config: Config | None,
    data: DataConfig,
    console: RunConsole,
    *,
    reward: bool = False,
) -> tuple[TextCodec | None, int | None]:
    """Returns the codec and the model's positions; None of what is not known.

    Weights are not read; a directory that is named for the check may hold a tokenizer
    alone.

    Args:
      reward: the model is what a reward model's training begins with.
    """
    if model is not None:
        folder = pathlib.Path(model)
        if folder.is_dir() and not (folder / "config.json").exists():
            tokenizer = read_tokenizer(folder)
            if tokenizer is not None:
                return make_codec(None, tokenizer, data), None
        found = start_reward(model, 0) if reward else resolve(model)
    elif config is not None:
        model = config.model.source
        if ":" in model and not pathlib.Path(model).exists():
            console.warn(
                f"model.source = {model} is a function that builds a model; to "
                "check tokens, give --model its directory (WORKDIR/model of a run)"
            )
            return None, None
        found = resolve(model, config.model.revision, config.model.base)
    else:
        return None, None
    if found.tokenizer is None:
        raise BadInput(f"{model} has no tokenizer (tokenizer.json)")
    codec = make_codec(found.config, found.tokenizer, data)
    if config is not None:
        check_codec(codec, model)
    return codec, found.config.max_positions


def find_scorer(
    args: argparse.Namespace, config: Config | None, console: RunConsole
) -> NamedScorer | None:
    """Returns the scorer of --scorer, or else the config's."""
    scorer = ScorerConfig() if config is None else config.scorer
    timeout = timeout_of(args, scorer.timeout)
    if args.scorer is not None:
        name = read_name(args.scorer, "--scorer")
        scorer = ScorerConfig(name=name, timeout=timeout)
        return load_scorer(scorer, "--timeout", "--scorer")
    if scorer.name is None:
        return None
    plain = replace(scorer, clip=None, normalise=False, length_penalty=0.0)
    if plain != scorer:
        console.warn(
            "labels are compared with the scorer's rewards before they are clipped, "
            "normalised and penalised by length, for which a run's answers are needed"
        )
    judge = None if config is None else config.judge
    return load_scorer(replace(plain, timeout=timeout), "--timeout", judge=judge)


def read_evaluation(
    config: Config, codec: TextCodec | None, folder: pathlib.Path, found: Checked
) -> dict[str, list[Prompt]]:
    """Returns the evaluation's prompts by option, read and encoded as a run does.

    Args:
      folder: where the prompts of functions are kept.
      found: what is wrong is noted there.
    """
    prompts: dict[str, list[Prompt]] = {}
    for option, source, cache in prompt_sources(config):
        if option == "data.prompts":
            continue
        try:
            file, data = prompt_file(source, option, config.data, folder / cache)
            one = prepare_prompts(file, data, codec)
        except BadInput as error:
            found.refuse(source, error)
            prompts[option] = []
            continue
        found.note(one.problems)
        found.note_unread(source, one.unread)
        prompts[option] = one.usable
    return prompts


def check_run(
    config: Config,
    codec: TextCodec,
    max_positions: int | None,
    evaluation: Mapping[str, Sequence[Prompt]],
    found: Checked,
) -> None:
    """Notes too few rows, and lengths that the model has no positions for.

    Args:
      max_positions: None: lengths are not checked.
      evaluation: of ``read_evaluation``.
      found: no source of which a run refuses.
    """
    quiet = RunConsole(io.StringIO(), io.StringIO())
    data = config.data

    def tried(work: Callable[[], T], source: str | None = None) -> T | None:
        try:
            return work()
        except BadInput as error:
            found.refuse(source or data.pairs or data.prompts or "", error)
            return None

    schedule, chunks = None, None
    if data.prompts is not None or data.eval_prompts is not None:
        prompts = {**evaluation, "data.prompts": found.usable}
        schedule = tried(
            lambda: plan_schedule(config, codec, prompts, quiet),
            data.prompts or data.eval_prompts,
        )
    if data.pairs is not None:
        chunks = tried(lambda: split_chunks(config, found.encoded))
    if found.refused:
        return
    tried(lambda: check_steps(config, schedule, chunks))
    if max_positions is None:
        needs = "a --model with its config.json"
        found.skipped.append(("lengths against the model's positions", needs))
        return
    tried(lambda: run_lengths(config, schedule, chunks, max_positions))
