"""The rewards of an arm: of the test pairs and of the pool, once for every seed.

    WORKDIR/measured/ARM-SEED.npz   SET [P, 2] rewards of chosen and rejected,
                                    SET/group, SET/length; pool [B, N]
    WORKDIR/models/                 averages of weights

The pairs of a set are drawn once, by one seed, so that all arms of all seeds are asked
about the same ones; the runs themselves draw their training pairs by their own seeds.
"""

import os
import pathlib
import sys

import numpy as np
from arms import (
    BACKBONES,
    ENSEMBLE,
    HERE,
    LONGER,
    MEMBERS,
    WARM,
    Backbone,
    run_grid,
    source,
)

import tpmm_jax as tpmm
from tpmm_jax.config import RewardConfig
from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.records import PairRow, Rollout
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.reward_pairs import load_reward_pairs
from tpmm_jax.errors import TpmmError
from tpmm_jax.scoring import RewardScorer, row_rewards
from tpmm_jax.store.files import write_file
from tpmm_jax.store.records import read_growing_records
from tpmm_jax.weights.source import Model

sys.path.append(str(HERE.parents[1] / "configs"))
import stories260k

# Of the test pairs.
PAIRS_SEED = 0
# Rows that are read at once.
BATCH = 64


def measured(workdir: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """Returns the file of an arm's rewards."""
    return workdir / "measured" / f"{arm.replace('/', '-')}-{seed}.npz"


def measure(workdir: pathlib.Path, name: str, arm: str, seed: int) -> str | None:
    """Writes an arm's rewards; returns what went wrong, in words, or None.

    Args:
      name: of the backbone.
    """
    path = measured(workdir, arm, seed)
    if path.exists():
        return None
    backbone = BACKBONES[name]
    try:
        if arm == ENSEMBLE:
            found = _mean_of(workdir, backbone, seed)
        else:
            found = _rewards(workdir, backbone, arm, seed)
    except TpmmError as error:
        return str(error)
    path.parent.mkdir(exist_ok=True)
    write_file(path, lambda file: np.savez_compressed(file, **found))
    return None


def _rewards(
    workdir: pathlib.Path, backbone: Backbone, arm: str, seed: int
) -> dict[str, np.ndarray]:
    config = configuration(workdir, backbone, seed)
    model = find(workdir, arm, seed)
    codec = codec_of(model, config)
    found: dict[str, np.ndarray] = {}
    for of_set, limit in backbone.limits.items():
        rows = test_pairs(config, codec, of_set)[:limit]
        texts = [
            [*r.prompt_ids, *ids]
            for r in rows
            for ids in (r.chosen_ids, r.rejected_ids)
        ]
        rewards = row_rewards(model.decoder, model.params, texts, batch_size=BATCH)
        lengths = [(len(r.chosen_ids), len(r.rejected_ids)) for r in rows]
        found[of_set] = rewards.reshape(len(rows), 2)
        found[f"{of_set}/length"] = np.asarray(lengths, np.int32)
        found[f"{of_set}/group"] = np.asarray([row.group for row in rows])
    answers = pool(workdir)
    if answers:
        scorer = RewardScorer(model, batch_size=BATCH)
        texts = [row.responses for row in answers]
        end = set(stories260k.theta_0().config.eos_ids)
        ended = [[ids[-1] in end for ids in row.response_ids] for row in answers]
        found["pool"] = scorer([row.prompt for row in answers], texts, ended)
    return found


def _mean_of(
    workdir: pathlib.Path, backbone: Backbone, seed: int
) -> dict[str, np.ndarray]:
    """Returns the mean of the members' rewards."""
    several = []
    for member in (LONGER, *MEMBERS):
        if message := measure(workdir, backbone.name, member, seed):
            raise TpmmError(message)
        with np.load(measured(workdir, member, seed)) as kept:
            several.append(dict(kept))
    first = several[0]
    return {
        name: x if "/" in name else np.mean([one[name] for one in several], axis=0)
        for name, x in first.items()
    }


def find(workdir: pathlib.Path, arm: str, seed: int) -> Model:
    """Returns an arm's model; makes the average."""
    if arm != WARM:
        return tpmm.load_reward(source(workdir, arm, seed))
    folder = source(workdir, arm, seed)
    if not folder.exists():
        runs = [source(workdir, one, seed) for one in (LONGER, *MEMBERS)]
        model = tpmm.merge(runs, [1 / len(runs)] * len(runs))
        folder.parent.mkdir(exist_ok=True)
        tpmm.save(model, folder)
    return tpmm.load_reward(folder)


def configuration(workdir: pathlib.Path, backbone: Backbone, seed: int) -> RewardConfig:
    """Returns the configuration of a seed's runs."""
    grid = run_grid(workdir, backbone, {LONGER: {}}, [seed])
    return grid.load(grid.cells()[0])


def codec_of(model: Model, config: RewardConfig) -> TextCodec:
    """Returns what reads texts as the runs do."""
    return make_codec(model.config, model.tokenizer, config.data.reading())


def test_pairs(config: RewardConfig, codec: TextCodec, of_set: str) -> list[PairRow]:
    """Returns the pairs of a test set, of the same texts a run may read."""
    path = pathlib.Path(os.environ["TPMM_RATINGS"]) / of_set / "test.jsonl"
    rows, _ = load_reward_pairs(
        RewardDataConfig(ratings=str(path), max_length=config.data.max_length),
        codec,
        seed=PAIRS_SEED,
        holdout_fraction=0.0,
        margins=False,
        note=lambda text: None,
        warn=print,
    )
    return rows


def pool(workdir: pathlib.Path) -> list[Rollout]:
    """Returns the answers that tpmm best_of_n drew; their rewards are gold's."""
    files = sorted((workdir / "pool").glob("*.jsonl"))
    return list(read_growing_records(files[0], Rollout)) if files else []
