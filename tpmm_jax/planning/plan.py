"""A plan: every program of a config on given devices, and a config that fits them."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpmm_jax.config import Config, ModelSource, RewardConfig, make_decoder, set_field
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import DATA, FSDP, bytes_on_device, make_mesh
from tpmm_jax.models import NO_NOISE, ModelConfig
from tpmm_jax.models.advice import mesh_advice
from tpmm_jax.models.experts import check_mesh
from tpmm_jax.planning.counts import count_work
from tpmm_jax.planning.devices import Target
from tpmm_jax.planning.measure import Measured, measure
from tpmm_jax.planning.meshes import MeshOption, mesh_options
from tpmm_jax.planning.phases import SAMPLE, Lengths, Phase, run_lengths, run_phases
from tpmm_jax.planning.raters import Rater, find_raters
from tpmm_jax.planning.rewards import pair_length, reward_model, reward_phases
from tpmm_jax.scoring import JUDGE

# Meshes that are compiled for before the search gives up.
MESHES = 3
# The phases that train.accumulation and the like make smaller.
BY_BATCH = (
    "log-probs of answers", "fusion gradient", "merges on held-out pairs",
    "reference log-probs", "train", "held-out rewards",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedPhase:
    """A program and what it takes.

    Attributes:
      memory: of a device, bytes; None: not known.
      seconds: of a call at the chip's peak, by what bounds it: "products", "memory"
        and "links"; empty: the chip is not known.
    """

    phase: Phase
    measured: Measured
    memory: int | None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes on a device; without a compiler those that are known."""
        made = self.measured.temporary
        return (
            self.measured.arguments
            + self.phase.held
            + (self.phase.made if made is None else made)
        )

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None: not known."""
        if self.measured.refused:
            return False
        if self.memory is None:
            return None
        if self.total > self.memory:
            return False
        # What is known without a compiler fits, and more comes on top.
        return None if self.measured.temporary is None else True

    @property
    def bound(self) -> str:
        """What bounds its speed; empty: not known."""
        return max(self.seconds, key=self.seconds.__getitem__, default="")

    @property
    def time(self) -> float | None:
        """Seconds of a call, at the chip's peak."""
        return self.seconds[self.bound] if self.seconds else None


@dataclass(frozen=True)
class Plan:
    """What a config takes on devices.

    Attributes:
      settings: "name=value" of what was changed of the config.
      notes: sentences for the user.
      drawing_mesh: on which answers are drawn; None: none are.
      whole: whether the calls of all phases are known, and so the time of an
        iteration, of a reward model that of a run.
    """

    target: Target
    model: ModelConfig
    mesh: Mapping[str, int]
    lengths: Lengths
    phases: Sequence[PlannedPhase]
    settings: Sequence[str] = ()
    notes: Sequence[str] = ()
    whole: bool = True
    drawing_mesh: Mapping[str, int] | None = None

    @property
    def fits(self) -> bool | None:
        """Whether every phase fits; None: not known."""
        found = [one.fits for one in self.phases]
        return False if False in found else None if None in found else True

    @property
    def seconds(self) -> float | None:
        """Of an iteration, at the chip's peak; None: not known."""
        times = [one.time for one in self.phases]
        if not self.whole or None in times:
            return None
        return sum((one.time or 0.0) * one.phase.calls for one in self.phases)


def planned_model(config: Config | RewardConfig, found: ModelConfig) -> ModelConfig:
    """Returns what a config trains, from the model that it begins with.

    Raises:
      BadInput: a policy is to be made of a reward model, or experts of a mixture.
    """
    if isinstance(config, RewardConfig):
        return reward_model(config, found)
    if found.output != "tokens":
        raise BadInput(
            "the model is a reward model, and the config trains a policy; give --model "
            "a causal language model"
        )
    return found


def lengths_of(config: Config | RewardConfig, model: ModelConfig) -> Lengths:
    """Returns what prompts and pairs are padded to.

    Raises:
      BadInput: the model has not so many positions.
    """
    if isinstance(config, RewardConfig):
        return Lengths(0, pair_length(config, model))
    return run_lengths(config, model)


def options_for(
    config: Config | RewardConfig, model: ModelConfig, target: Target
) -> list[MeshOption]:
    """Returns the meshes of the target's devices, best first."""
    return mesh_options(
        config,
        model,
        len(target.devices),
        lengths_of(config, model).pair,
        chip=target.chip,
        memory=target.memory,
    )


def legal_mesh(
    config: Any, model: ModelConfig, target: Target
) -> tuple[Any, list[str], list[str]]:
    """Returns the config with a mesh of the target's devices, and what was changed.

    Returns:
      The config, its changed fields as "name=value", and sentences.
    """
    try:
        check_mesh(make_mesh(config.mesh, target.devices), model)
        return config, [], []
    except BadInput as error:
        # The advice that follows is of the devices at hand.
        why = str(error).partition(";")[0]
    best = options_for(config, model, target)[0]
    settings = best.settings
    return _changed(config, settings), settings, [f"{why}: {best.text} is planned"]


def make_plan(
    config: Config | RewardConfig,
    model: ModelConfig,
    target: Target,
    *,
    pairs: int | None,
    cache: pathlib.Path | None,
    on_phase: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Plan:
    """Returns the plan of a config.

    Args:
      model: what is trained.
      pairs: offline pairs, or those of a reward model; None: not known.
      on_phase: called with a phase's name, its number from 0, and how many there are.
    """
    config, settings, notes = legal_mesh(config, model, target)
    mesh = make_mesh(config.mesh, target.devices)
    notes += mesh_advice(mesh, model, config.batch_sizes)
    lengths = lengths_of(config, model)
    noise = config.noise if isinstance(config, RewardConfig) else NO_NOISE
    decoder = make_decoder(config.model, model, mesh, noise)
    if isinstance(config, RewardConfig):
        phases, whole = reward_phases(config, decoder, pairs), pairs is not None
    else:
        counts = count_work(config, pairs)
        raters = find_raters(config, mesh, lengths, counts, target.memory, notes.append)
        resident = sum(one.weights for one in raters)
        phases = run_phases(config, decoder, target.memory, resident, counts)
        phases += _rating(raters, phases)
        whole = not config.offline or pairs is not None
    if whole:
        phases = [one for one in phases if one.calls]
    found = []
    for number, phase in enumerate(phases):
        on_phase(phase.name, number, len(phases))
        found.append(_planned(phase, target, cache))
    drawn = [one.args[0].mesh.shape for one in phases if one.name.startswith(SAMPLE)]
    return Plan(
        target, model, dict(mesh.shape), lengths, found, settings, notes, whole,
        dict(drawn[0]) if drawn else None,
    )  # fmt: skip


def _rating(raters: Sequence[Rater], run: Sequence[Phase]) -> list[Phase]:
    """Returns the raters' programs, with what lies beside each."""
    alone = sum(one.weights for one in raters)
    drawing = [one for one in run if one.name.startswith(SAMPLE)]
    # The policy that has drawn, and what lies beside it, the raters among that.
    beside = alone
    if drawing:
        beside = drawing[0].held + bytes_on_device(drawing[0].args[1])
    return [
        replace(phase, held=phase.held + (alone if one.alone else beside) - one.weights)
        for one in raters
        for phase in one.phases
    ]


def _planned(phase: Phase, target: Target, cache: pathlib.Path | None) -> PlannedPhase:
    devices, chip = len(target.devices), target.chip
    found, seconds = measure(phase, target, devices, cache), {}
    if chip is not None:
        peak = chip.peak(phase.dtype)
        seconds["products"] = found.flops / (peak * devices)
        # What is not known of a program: that it reads its arguments, each turn.
        moved = float(phase.turns * found.arguments)
        if found.traffic is not None:
            moved = found.traffic.memory
            seconds["links"] = found.traffic.sent / chip.link
        seconds["memory"] = moved / chip.bandwidth
    return PlannedPhase(phase, found, target.memory, seconds)


def suggest(
    config: Config | RewardConfig,
    model: ModelConfig,
    target: Target,
    plan: Plan,
    *,
    pairs: int | None,
    cache: pathlib.Path | None,
    on_try: Callable[[Sequence[str]], None] = lambda settings: None,
) -> Plan | None:
    """Returns a plan that fits: the first found with the least changed.

    On the plan's own mesh first, then on others, best first by arithmetic; on each with
    smaller batches, as far as the devices can still share them.

    Args:
      plan: that does not fit.
      on_try: called with the settings that are compiled next.
    """
    options = [one for one in options_for(config, model, target) if not one.faults]
    others = [one.settings for one in options if dict(one.shape) != dict(plan.mesh)]
    for mesh in [list(plan.settings), *others[:MESHES]]:
        settings, tried = mesh, plan
        if mesh != list(plan.settings):
            on_try(settings)
            changed = _changed(config, settings)
            tried = make_plan(changed, model, target, pairs=pairs, cache=cache)
        while tried.fits is False:
            changed = _changed(config, settings)
            if not (smaller := _smaller(changed, tried)):
                break
            names = [one.partition("=")[0] for one in smaller]
            kept = [one for one in settings if one.partition("=")[0] not in names]
            settings = [*kept, *smaller]
            on_try(settings)
            changed = _changed(config, settings)
            tried = make_plan(changed, model, target, pairs=pairs, cache=cache)
        if tried.fits is not False:
            return replace(tried, settings=settings)
    return None


def _smaller(config: Config | RewardConfig, plan: Plan) -> list[str]:
    """Returns settings with which what does not fit takes less; empty: none is left."""
    refused = {one.phase.name for one in plan.phases if one.fits is False}
    drawing = {name for name in refused if name.startswith(SAMPLE)}
    judging = {name for name in refused if name.startswith(JUDGE)}
    training = {name for name in refused if name in BY_BATCH}
    # What is known without a compiler does not depend on a training batch.
    rest = refused - drawing - judging - training
    if rest or (training and not plan.target.compiles):
        return []
    shards, settings = plan.mesh[DATA] * plan.mesh[FSDP], []
    if isinstance(config, Config):
        sizes = {
            "rollout.batch_size": (drawing, config.rollout.batch_size),
            "judge.batch_size": (judging, config.judge.batch_size),
        }
        for name, (too_large, size) in sizes.items():
            if too_large:
                if (half := size // 2 // shards * shards) == 0:
                    return []
                settings.append(f"{name}={half}")
    if training:
        train, narrow = config.train, ModelSource(source="").logits_chunk_mib
        more = [
            n
            for n in range(train.accumulation + 1, train.batch_size + 1)
            if train.batch_size % n == 0 and 2 * train.batch_size // n % shards == 0
        ]
        if not config.model.remat:
            settings.append("model.remat=true")
        elif config.model.logits_chunk_mib > narrow:
            settings.append(f"model.logits_chunk_mib={narrow}")
        elif more:
            settings.append(f"train.accumulation={more[0]}")
        else:
            return []
    return settings


def _changed(config: Any, settings: Sequence[str]) -> Any:
    for setting in settings:
        config = set_field(config, setting)
    return config
