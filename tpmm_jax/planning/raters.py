"""The models of ours that rate a run's answers, and the programs with which they do."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jax.sharding import Mesh

from tpmm_jax.config import Config
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import bytes_on_device
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.planning.counts import Counts
from tpmm_jax.planning.phases import Lengths, Phase, drawing, laid_to_draw, laying_out
from tpmm_jax.planning.rewards import rating
from tpmm_jax.planning.sizes import find_sizes
from tpmm_jax.scoring import JUDGE, RewardScorer
from tpmm_jax.scoring.judge_config import read_template
from tpmm_jax.scoring.named import REWARD
from tpmm_jax.scoring.row_rewards import padded_length

# Of a judge's template, for one token.
CHARACTERS = 4


@dataclass(frozen=True)
class Rater:
    """A reward model or judge that rates, and is on the devices throughout a run.

    Attributes:
      weights: its bytes on a device.
      phases: its programs.
      alone: whether no policy is on the devices while it is asked.
    """

    weights: int
    phases: Sequence[Phase]
    alone: bool = False


@dataclass
class Asked:
    """What an iteration asks of a model.

    Attributes:
      name: as the config has it.
      options: of a reward model.
      at_once: how often it is asked, on average, and about how many answers; of a
        judge how many questions.
      alone: see ``Rater``.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    at_once: list[tuple[float, int]] = field(default_factory=list)
    alone: bool = True

    @property
    def judges(self) -> bool:
        """Whether it compares answers, and else rates each."""
        return self.name.startswith(JUDGE)

    def rate(self, batches: Sequence[int], samples: int, times: float = 1) -> None:
        """Adds answers to batches of prompts, of which a judge compares each two."""
        # In both orders.
        each = samples * (samples - 1) if self.judges else samples
        self.at_once += [(times, prompts * each) for prompts in batches]

    def calls(self, size: int) -> float:
        """Returns the batches that are read; each time the last is filled up."""
        return sum(times * math.ceil(items / size) for times, items in self.at_once)


def find_raters(
    config: Config,
    mesh: Mesh,
    lengths: Lengths,
    counts: Counts,
    memory: int | None,
    note: Callable[[str], None],
) -> list[Rater]:
    """Returns the models of ours that rate; functions run elsewhere.

    Args:
      memory: of a device, bytes; None: not known.
      note: told of what is not counted.
    """
    found = []
    for asked in _asked(config, counts):
        source = asked.name.removeprefix(REWARD).removeprefix(JUDGE)
        try:
            model = find_sizes(source, asked.name)
        except BadInput:
            note(f"{asked.name} is not counted: its sizes are not known here")
            continue
        if asked.judges:
            found.append(_judge(config, mesh, asked, model, memory, note))
        else:
            found.append(_reward_rater(mesh, lengths, asked, model))
    return found


def _asked(config: Config, counts: Counts) -> list[Asked]:
    """Returns the models that rate, and what an iteration asks of each."""
    rollout, evaluation = config.rollout, config.evaluation
    size, samples = rollout.batch_size, evaluation.samples_per_prompt
    labels = [*config.scorer.names]
    if config.scorer.ensemble == "weights":
        # One model is left of those that are averaged.
        labels = labels[:1]
    options = config.scorer.options if len(labels) == 1 else {}
    found = {name: Asked(name, options, alone=False) for name in labels}
    for asked in found.values():
        asked.rate(_batches(counts.prompts, size), rollout.samples_per_prompt)
        asked.rate(_batches(counts.chosen, size), rollout.samples_per_prompt, 2)
    # Judges alone have no rewards by which policies compare.
    measured = [] if all(name.startswith(JUDGE) for name in labels) else labels
    further = [
        name
        for one in evaluation.scorers.values()
        for name in ([one] if isinstance(one, str) else one)
    ]
    shipped, batches = counts.shipped > 0, _batches(evaluation.num_prompts, size)
    for name in dict.fromkeys([*measured, *further]):
        asked = found.setdefault(name, Asked(name, alone=False))
        asked.rate(batches, samples, counts.sets + shipped)
    for name in dict.fromkeys(evaluation.judges.values()):
        # Answers meet those of theta_0 and of theta_{t-1}, which are one in the first
        # iteration, the mean's those of theta_0 and of theta_t, in both orders.
        times = 2 * (counts.sets * (2 - 1 / config.iterations) + 2 * shipped)
        asked = found.setdefault(name, Asked(name))
        asked.at_once += [(times, prompts * samples) for prompts in batches]
    rating = list(found.values())
    if config.madpo.margins is not None:
        # Loaded for itself, whatever else it does.
        asked = Asked(config.madpo.margins, config.madpo.options, alone=config.offline)
        prompts, answers = counts.prompts, rollout.samples_per_prompt
        if config.offline:
            prompts, answers = counts.train + counts.held_out // 2, 2
        asked.rate(_batches(prompts, size), answers)
        rating.append(asked)
    return [one for one in rating if one.name.startswith((REWARD, JUDGE))]


def _batches(prompts: int, size: int) -> list[int]:
    """Returns the prompts of each batch."""
    return [min(size, prompts - at) for at in range(0, prompts, size)]


def _reward_rater(
    mesh: Mesh, lengths: Lengths, asked: Asked, model: ModelConfig
) -> Rater:
    if model.output != "reward":
        raise BadInput(
            f"{asked.name} is a causal language model, which has no reward head"
        )
    dtype = str(asked.options.get("dtype", "float32"))
    decoder = Decoder(model, compute_dtype=dtype, mesh=mesh)
    size = int(asked.options.get("batch_size", RewardScorer.batch_size))
    calls = asked.calls(size)
    rated = rating(decoder, asked.name, size, lengths.pair, calls, held_in=dtype)
    weights = bytes_on_device(decoder.abstract_params(dtype))
    return Rater(weights, [rated], asked.alone)


def _judge(
    config: Config,
    mesh: Mesh,
    asked: Asked,
    model: ModelConfig,
    memory: int | None,
    note: Callable[[str], None],
) -> Rater:
    name, asks = asked.name, config.judge
    if model.output == "reward":
        raise BadInput(f"{name}: a reward model cannot judge")
    decoder = Decoder(model, compute_dtype=asks.dtype, mesh=mesh)
    laid = laid_to_draw(decoder, memory)
    weights = bytes_on_device(decoder.abstract_params(asks.dtype))
    size, sampling = asks.batch_size, asks.sampling
    batch = size, _question_length(config, name, model, note)
    # Its weights are laid out anew each time that it is asked.
    times = sum(times for times, items in asked.at_once if items)
    phases = [
        *laying_out(f"lay out {name}", decoder, laid, times, asks.dtype),
        replace(
            drawing(name, laid, sampling, batch, asked.calls(size), dtype=asks.dtype),
            # Those that draw are another copy.
            held=0 if laid is decoder else weights,
        ),
    ]
    made = [replace(phase, dtype=asks.dtype) for phase in phases]
    return Rater(weights, made, asked.alone)


def _question_length(
    config: Config, name: str, model: ModelConfig, note: Callable[[str], None]
) -> int:
    """Returns the tokens of a judge's longest question, padded.

    Raises:
      BadInput: two answers that are drawn, and a reply, leave no room for it.
    """
    data, reply, drawn = config.data, config.judge.max_new_tokens, 0
    if data.prompts is not None or data.eval_prompts is not None:
        drawn = config.rollout.max_new_tokens
    if 2 * drawn + reply >= model.max_positions:
        raise BadInput(
            f"{name} has {model.max_positions} positions, and two answers of {drawn} "
            f"tokens and a reply of {reply} leave no room for a question; use a judge "
            "of a longer context, or lower the limits of answers or replies"
        )
    answer = max(drawn, data.max_completion_length if config.offline else 0)
    # Its tokenizer is not read.
    asked = len(read_template(config.judge)) // CHARACTERS
    longest = asked + data.max_prompt_length + 2 * answer
    if longest + reply > model.max_positions:
        note(
            f"{name} has {model.max_positions} positions, and its longest question "
            f"some {longest} tokens, its reply {reply}: a run in which one is so long "
            "is refused"
        )
    return padded_length(longest, model.max_positions - reply)
