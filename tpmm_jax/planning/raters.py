"""The models of ours that rate a run's answers, and the programs with which they do."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from tpmm_jax.sampling import SamplingConfig
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
    """

    weights: int
    phases: Sequence[Phase]


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
    for name, calls in _asked(config, counts).items():
        try:
            model = find_sizes(name.removeprefix(REWARD).removeprefix(JUDGE), name)
        except BadInput:
            note(f"{name} is not counted: its sizes are not known here")
            continue
        if name.startswith(JUDGE):
            found.append(_judge(config, mesh, lengths, name, model, calls, memory))
        else:
            found.append(_reward_rater(config, mesh, lengths, name, model, calls))
    return found


def _asked(config: Config, counts: Counts) -> dict[str, float]:
    """Returns what an iteration asks of each: answers, of a judge questions."""
    rollout, evaluation = config.rollout, config.evaluation
    further = [
        name
        for one in evaluation.scorers.values()
        for name in ([one] if isinstance(one, str) else one)
    ]
    labels = [*config.scorer.names]
    if config.scorer.ensemble == "weights":
        # One model is left of those that are averaged.
        labels = labels[:1]
    drawn = (counts.prompts + 2 * counts.chosen) * rollout.samples_per_prompt
    evaluated = counts.answers + counts.shipped
    # An answer meets those of theta_0 and of theta_{t-1}, which are one in the first
    # iteration; the mean's those of theta_0 and of theta_t.
    met = counts.answers * (2 - 1 / config.iterations) + 2 * counts.shipped
    asked: dict[str, float] = {}

    def ask(name: str | None, answers: float, questions: float) -> None:
        """Adds answers; of a judge as many questions about each."""
        if name is not None and name.startswith((REWARD, JUDGE)):
            more = answers * questions if name.startswith(JUDGE) else answers
            asked[name] = asked.get(name, 0.0) + more

    # A judge that scores compares each two answers to a prompt in both orders.
    for name in labels:
        ask(name, drawn, rollout.samples_per_prompt - 1)
    for name in dict.fromkeys([*labels, *further]):
        ask(name, evaluated, evaluation.samples_per_prompt - 1)
    for name in evaluation.judges.values():
        ask(name, met, 2)
    ask(config.madpo.margins, 2 * counts.train, 0)
    return asked


def _reward_rater(
    config: Config,
    mesh: Mesh,
    lengths: Lengths,
    name: str,
    model: ModelConfig,
    answers: float,
) -> Rater:
    if model.output != "reward":
        raise BadInput(f"{name} is a causal language model, which has no reward head")
    options: Mapping[str, Any] = {}
    if name == config.madpo.margins:
        options = config.madpo.options
    elif [*config.scorer.names] == [name]:
        options = config.scorer.options
    dtype = str(options.get("dtype", "float32"))
    decoder = Decoder(model, compute_dtype=dtype, mesh=mesh)
    size = int(options.get("batch_size", RewardScorer.batch_size))
    calls = math.ceil(answers / size)
    rated = rating(decoder, name, size, lengths.pair, calls, held_in=dtype)
    return Rater(bytes_on_device(decoder.abstract_params(dtype)), [rated])


def _judge(
    config: Config,
    mesh: Mesh,
    lengths: Lengths,
    name: str,
    model: ModelConfig,
    questions: float,
    memory: int | None,
) -> Rater:
    """Returns a judge, whose questions hold a prompt and two answers."""
    if model.output == "reward":
        raise BadInput(f"{name}: a reward model cannot judge")
    asks = config.judge
    decoder = Decoder(model, compute_dtype=asks.dtype, mesh=mesh)
    laid = laid_to_draw(decoder, memory)
    weights = bytes_on_device(decoder.abstract_params(asks.dtype))
    # Its tokenizer is not read.
    words = len(read_template(asks)) // CHARACTERS
    length = padded_length(
        words + lengths.prompt + 2 * config.rollout.max_new_tokens,
        model.max_positions - asks.max_new_tokens,
    )
    calls = math.ceil(questions / asks.batch_size)
    sampling = SamplingConfig(max_new_tokens=asks.max_new_tokens, temperature=0.0)
    phases = [
        *laying_out(f"lay out {name}", decoder, laid, calls, asks.dtype),
        drawing(name, laid, sampling, (asks.batch_size, length), calls),
    ]
    # Where they draw as another copy, its own weights lie beside it.
    held = 0 if laid is decoder else weights
    phases[-1] = replace(phases[-1], held=held)
    return Rater(weights, [replace(one, dtype=asks.dtype) for one in phases])
