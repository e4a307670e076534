"""The held-out pairs of a reward run again, for what learns on them later."""

import json
import pathlib

from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.reward_pairs import fitting, load_reward_pairs
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompt_functions import is_function
from tpmm_jax.loop.setup import start_date
from tpmm_jax.reward_runs.plan import ITERATION
from tpmm_jax.store import read_json
from tpmm_jax.store.digests import read_listed
from tpmm_jax.store.rollouts import read_rollouts
from tpmm_jax.weights.source import Source


def held_out_rows(
    workdir: pathlib.Path, source: Source, console: RunConsole
) -> list[PairRow]:
    """Returns the pairs that a finished run held out, read and split as it did.

    Args:
      source: a model of the run.

    Raises:
      BadInput: the run is not finished, or its data are gone or are other ones now.
    """
    path = workdir / "iterations" / f"{ITERATION:03d}" / "held_out.jsonl"
    if not path.exists():
        raise BadInput(
            f"{workdir} is not finished: {path} is missing, which lists its held-out "
            "pairs. Continue it with tpmm train_reward, or give pairs with --pairs"
        )
    config = read_json(workdir / "config.json")
    data = RewardDataConfig(**config["data"])
    if is_function(data.source):
        data = data.at(str(workdir / "pairs.jsonl"))
    reading, date = data.reading(), start_date(workdir, True)
    _, held = load_reward_pairs(
        data,
        make_codec(source.config, source.tokenizer, reading, date),
        seed=config["seed"],
        holdout_fraction=config["evaluation"]["holdout_fraction"],
        margins=config["loss"]["use_margins"],
        answers=read_rollouts(data.source) if data.kind == "rollouts" else None,
        note=lambda text: None,
        warn=console.warn,
    )
    held = fitting(held, source.config.max_positions, console.warn, data.source)
    found = [(r.group, len(r.chosen_ids), len(r.rejected_ids)) for r in held]
    lines = map(json.loads, read_listed(path).splitlines())
    names = ("group", "chosen_length", "rejected_length")
    if found != [tuple(line[name] for name in names) for line in lines]:
        raise BadInput(
            f"{data.source} no longer gives the held-out pairs of {workdir} ({path}); "
            "restore the data, or give pairs with --pairs that it was not trained on"
        )
    return held
