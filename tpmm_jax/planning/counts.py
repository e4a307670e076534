"""How often an iteration of a config does what; averages over the run."""

import math
from dataclasses import dataclass

from tpmm_jax.config import Config


@dataclass(frozen=True)
class Counts:
    """What an iteration works on; see ``count_work``.

    Attributes:
      prompts: sampled from, held-out ones included; offline 0.
      train: training pairs.
      held_out: different answers of an iteration's held-out pairs.
      pooled: held-out pairs of all iterations that a rule looks at.
      evaluated: batches of prompts of the evaluation.
      sets: of prompts of the evaluation.
      answers: of the evaluation.
      shipped: answers of the mean that is shipped, beside these.
      chosen: held-out prompts on which two policies are compared, to ship one.
      answer_passes: models that the evaluation's answers are read by.
      held_out_passes: models that an iteration's held-out answers are read by.
      training_passes: models that training pairs are read by, the reference apart.
      reference_passes: models, or states of one, that the reference is made of.
      merges: of all policies so far.
      judged: merges whose log-probs of all held-out pairs are computed.
    """

    prompts: int
    train: int
    held_out: int
    pooled: float
    evaluated: float
    sets: int
    answers: int
    shipped: int
    chosen: int
    answer_passes: float
    held_out_passes: float
    training_passes: float
    reference_passes: float
    merges: float
    judged: float


def count_work(config: Config, pairs: int | None = None) -> Counts:
    """Returns what an iteration works on.

    Args:
      pairs: of the data, offline; None: not known.
    """
    drawn, share = config.rollout, config.pairing.holdout_fraction
    total = drawn.prompts_per_iteration
    if config.offline:
        total = -(-(pairs or 0) // config.iterations)
    held_out = round(share * total)
    sampled = config.data.prompts is not None or config.data.eval_prompts is not None
    sets = (1 + len(config.evaluation.sets)) * sampled
    size = config.evaluation.num_prompts
    batches = -(-size // drawn.batch_size)
    samples, sides = drawn.samples_per_prompt, drawn.samples_per_prompt
    of_prompt = samples * (samples - 1) / 2
    if config.offline:
        sides, of_prompt = 2, 1
    passes, shipped = _evaluation_passes(config), config.ship != "last"
    # A mean is one more set of answers: its own log-probs and theta_0's.
    answers = size * config.evaluation.samples_per_prompt
    extra = 2 / sets if shipped and sets else 0
    window = config.reference.holdout_window or config.iterations
    return Counts(
        prompts=0 if config.offline else total,
        train=total - held_out,
        held_out=held_out * sides,
        pooled=held_out * of_prompt * (1 + min(window, config.iterations)) / 2,
        evaluated=batches * (sets + (shipped and sets > 0)),
        sets=sets,
        answers=answers * sets,
        shipped=answers * (shipped and sets > 0),
        chosen=held_out * (config.ship == "auto"),
        answer_passes=passes + extra,
        held_out_passes=passes + _rule_passes(config, window),
        training_passes=_agreeing(config),
        reference_passes=_reference_passes(config, total - held_out),
        merges=_merges(config) + shipped,
        judged=_judged(config),
    )


def _policies(config: Config) -> float:
    """Returns the policies that there are before an iteration, on average."""
    return (1 + config.iterations) / 2


def _evaluation_passes(config: Config) -> int:
    """Returns the models whose log-probs an evaluation compares."""
    if config.loss.reference_free or config.reference.rule == "sft":
        return 2
    return 3


def _rule_passes(config: Config, window: int) -> float:
    reference = config.reference
    if config.ship == "learned" or reference.uses_holdout:
        # Of theta_0's log-probs of a hold-out, which the evaluation shares, no pass.
        alone = reference.rule == "learned" and reference.fit == "adam"
        if config.ship == "learned" or not alone:
            # A hold-out under the other policies, and the newest on earlier ones.
            return _policies(config) - 1 + min(window, config.iterations) / 2
    return 0.0


def _agreeing(config: Config) -> float:
    if config.pairing.weights != "agreement":
        return 0.0
    return _policies(config)


def _reference_passes(config: Config, train: int) -> float:
    reference = config.reference
    if reference.rule == "trust_region":
        steps = math.ceil(train / config.train.batch_size) * config.train.epochs
        moves = max(0, steps - 1) // reference.trust_region_tau
        # Each move looks at the pairs that are to come.
        return 1 + moves / 2
    return _policies(config) if reference.mix == "log_probs" else 1.0


def _merges(config: Config) -> float:
    reference = config.reference
    if reference.rule in ("sft", "previous", "trust_region", "none"):
        return 0.0
    # Each look merges, and reads the deltas again for the gradient.
    if looks := reference.evaluations:
        return 1 + 2 * looks
    return (0 if reference.mix == "log_probs" else 1) + _judged(config)


def _judged(config: Config) -> float:
    rules = {"best": 1, "greedy_soup": 2}
    return rules.get(config.reference.rule, 0) * _policies(config)
