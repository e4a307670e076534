"""Writing a LoRA run's adapters as a PEFT directory: tpmm export --peft."""

import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.lora import abstract_adapters, placed, put, scaling
from tpmm_jax.store import Base, Trajectory, read_json
from tpmm_jax.store.files import sha256, storage_errors
from tpmm_jax.weights.architecture import architecture_differences
from tpmm_jax.weights.hub import POLICY, TRAJECTORY, TRAJECTORY_STEP, is_hub_id
from tpmm_jax.weights.kept import run_workdir, weights_of_mean
from tpmm_jax.weights.loading import (
    adapters_base,
    adapters_place,
    resolve_any,
    start_reward,
)
from tpmm_jax.weights.peft import adapter_config, is_adapter, write_adapters
from tpmm_jax.weights.saving import whole_directory
from tpmm_jax.weights.source import Source
from tpmm_jax.weights.tokenizer import write_tokenizer


@dataclass(frozen=True)
class StoredAdapter:
    """A step of a LoRA run.

    Attributes:
      base, revision: the model under it, as PEFT is to find it.
      digest: of the step: adapters, base and scale.
    """

    lora: LoraConfig
    adapters: Params
    base: str
    revision: str | None
    digest: str


def read_step(model: str, source: Source, base: str | None) -> StoredAdapter:
    """Returns a step's adapters, once its base is known to be the right one.

    Args:
      model: what the user named, for messages.
      base: a hub id or directory that goes before what the run remembers.

    Raises:
      BadInput: not a step of a LoRA run, or a base that PEFT cannot find or that has
        other weights.
    """
    mean = POLICY.fullmatch(source.origin["source"])
    match = mean or TRAJECTORY_STEP.fullmatch(source.origin["source"])
    workdir = pathlib.Path(match["workdir"] or ".") if match else pathlib.Path()
    kept = TRAJECTORY if mean or match is None else match["kept"]
    if match is None or not _holds_adapters(workdir / kept):
        raise BadInput(
            f"--peft: {model} is not a step of a run with model.lora.rank, so there is "
            "no adapter; export without --peft"
        )
    decoder = Decoder(source.config)
    with Trajectory(workdir / kept, read_only=True) as trajectory:
        record = trajectory.meta(0)["base"]
        *place, seed = adapters_place(workdir, kept)
        name, revision = _base_for_peft(workdir, record, place, base)
        trajectory.base = (
            adapters_base(workdir, decoder)
            if base is None
            else _given(name, decoder, seed)
        )
        if trajectory.base is not None:
            _check_config(_find(name, revision, seed), name, source)
            trajectory.restore_base()
        steps = [int(match["step"])]
        steps = list(range(steps[0] + 1)) if mean else steps
        lora = replace(trajectory.lora_of(steps[-1]), dropout=_dropout(workdir))
        target = abstract_adapters(decoder.abstract_params(), lora)
        several = [trajectory.restore_adapters(step, target) for step in steps]
        digests = [trajectory.digest(step) for step in steps]
    adapters, digest = several[0], digests[0]
    if mean:
        weights = weights_of_mean(workdir, mean["name"], steps[-1])
        adapters, lora = mean_adapters(
            [several[k] for k in weights], list(weights.values()), lora
        )
        digest = sha256([digests, list(weights.items())])
    return StoredAdapter(lora, adapters, name, revision, digest)


def mean_adapters(
    policies: Sequence[Params], weights: Sequence[float], lora: LoraConfig
) -> tuple[Params, LoraConfig]:
    """Returns adapters whose product is the mean of the policies' products, exactly.

    Their ranks stand side by side; a policy whose product is zero has none.

    Args:
      weights: of the policies; their ratios count.
    """
    total = sum(weights)
    kept = [
        (p, weight / total)
        for p, weight in zip(policies, weights, strict=True)
        if any(jnp.any(pair["b"]) for _, pair in placed(p))
    ]
    kept = kept or [(policies[0], 1.0)]
    mean: Params = {}
    for number, (target, _) in enumerate(placed(kept[0][0])):
        pairs = [(list(placed(p))[number][1], weight) for p, weight in kept]
        a = jnp.concatenate([pair["a"] for pair, _ in pairs], axis=-1)
        b = jnp.concatenate([pair["b"] * weight for pair, weight in pairs], axis=1)
        put(mean, target.path, {"a": a, "b": b})
    rank = len(kept) * lora.rank
    alpha = scaling(lora) * rank
    return mean, replace(lora, rank=rank, alpha=alpha, rslora=False)


def _holds_adapters(folder: pathlib.Path) -> bool:
    with Trajectory(folder, read_only=True) as trajectory:
        return trajectory.holds_adapters()


def _dropout(workdir: pathlib.Path) -> float:
    """Returns the run's, which PEFT needs to train further and a policy does not."""
    config = read_json(workdir / "config.json")
    return config["model"].get("lora", {}).get("dropout", 0.0)


def _base_for_peft(
    workdir: pathlib.Path,
    record: dict[str, Any],
    place: Sequence[Any],
    given: str | None,
) -> tuple[str, str | None]:
    """Returns the name and the revision of the base, as PEFT is to find it.

    Args:
      place: name and revision of the base that the run's adapters are read over.
    """
    own, revision = place
    if given is None and record.get("commit"):
        return record["source"], record["commit"]
    if given is None and is_hub_id(own):
        return own, revision
    if given is not None and not os.path.lexists(given):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
            raise BadInput(
                f"--base-model is {given!r}; wanted a model's directory, or a hub id "
                "such as org/name"
            )
        return given, None
    path = pathlib.Path(own if given is None else given)
    named = TRAJECTORY_STEP.fullmatch(str(path)) or POLICY.fullmatch(str(path))
    if not os.path.exists(path) and not named:
        raise BadInput(
            f"--peft: the base {path} is not there; put it back, make {workdir}/base a "
            "link to it, or name its directory: --base-model DIR"
        )
    is_model = (path / "config.json").is_file() and run_workdir(path) is None
    if not is_model or is_adapter(path):
        raise BadInput(
            f"--peft: PEFT cannot load {path} as a base: it is not a Hugging Face "
            "directory of a whole model. Write the run's base as one: "
            f"tpmm export {own} --output BASE; then add --base-model BASE"
        )
    return str(path.resolve()), None


def _find(name: str, revision: str | None, seed: int | None) -> Source:
    """Returns the base: what was found or, with a seed, a causal model with a head."""
    if seed is not None:
        return start_reward(name, seed, revision)
    return resolve_any([name], revision=revision)[0]


def _check_config(found: Source, name: str, source: Source) -> None:
    """Refuses a base whose config.json is not the run's: PEFT would go by it.

    Weights alone do not tell: a rope_theta or a window has none.
    """
    if differing := architecture_differences(source.config, found.config):
        raise BadInput(
            f"--peft: the config.json of the base {name} is not the run's "
            f"({'; '.join(differing)}); name the run's own base as --base-model"
        )


def _given(name: str, decoder: Decoder, seed: int | None) -> Base | None:
    """The base that the user named; None for a hub id, which is not downloaded."""
    if is_hub_id(name):
        return None
    advice = "name the directory of the run's own base as --base-model"
    return Base(lambda: _find(name, None, seed).read(decoder, "float32"), name, advice)


def save_adapter(
    stored: StoredAdapter, source: Source, directory: str, card: str
) -> None:
    """Writes the directory, whole or not at all."""
    with whole_directory(directory) as whole, storage_errors(directory):
        rewards = source.config.output == "reward"
        content = adapter_config(
            stored.lora, stored.base, stored.revision, rewards=rewards
        )
        write_adapters(stored.adapters, source.config, content, whole)
        (whole / "README.md").write_text(card, encoding="utf-8")
        if source.tokenizer is not None:
            write_tokenizer(source.tokenizer, whole)
