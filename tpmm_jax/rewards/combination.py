"""Several scorers as one; what is done to rewards before they label.

The order is stated in docs/rewards.md: members rate, each is clipped, then normalised,
then they are summed by weight, then the length penalty is taken off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards.scorer import Find, Known, Limits, NamedScorer, find_function
from tpmm_jax.rewards.scorer_config import ScorerConfig

# Makes one scorer of models that are averaged in weights: (config, the field's name).
Average = Callable[[ScorerConfig, str], NamedScorer]


@dataclass(frozen=True)
class Rating:
    """What a scorer gives to answers.

    Attributes:
      rewards_BR: float64.
      spread_BR: the population standard deviation over the members of several scorers,
        each as it was summed; None of a single one.
    """

    rewards_BR: np.ndarray
    spread_BR: np.ndarray | None = None


@dataclass(frozen=True)
class Scale:
    """Where each member's rewards lie: over theta_0's answers to evaluation prompts.

    Attributes:
      centre, scale: mean and population standard deviation of each member.
      answers: how many answers they are of.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    answers: int


@dataclass(frozen=True)
class Combination:
    """Members, and how one reward is made of theirs; see ``ScorerConfig``.

    Attributes:
      weights: of each member.
      scale: None: nothing is clipped or normalised, or not yet known: then members'
        rewards are summed as they are.
    """

    members: tuple[NamedScorer, ...]
    weights: tuple[float, ...]
    length_penalty: float = 0.0
    normalise: bool = False
    clip: float | None = None
    scale: Scale | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        known: Known | None = None,
    ) -> np.ndarray:
        """Returns rewards_BR."""
        return self.rate(prompts, responses, known).rewards_BR

    def rate(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        known: Known | None = None,
    ) -> Rating:
        """Returns rewards, and how far the members are apart."""
        said_KBR = self.ask(prompts, responses, known)
        return self.combine(said_KBR, self._tokens(known, said_KBR))

    def ask(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        known: Known | None = None,
    ) -> np.ndarray:
        """Returns what each member says, float64 [K, B, R]."""
        return np.stack([one(prompts, responses, known) for one in self.members])

    def combine(
        self, said_KBR: np.ndarray, tokens_BR: np.ndarray | None = None
    ) -> Rating:
        """Returns the reward that members' rewards make.

        Args:
          tokens_BR: of each response; None without a length penalty.
        """
        if self.scale is not None:
            centre_K11, scale_K11 = (
                np.asarray(x, np.float64)[:, None, None]
                for x in (self.scale.centre, self.scale.scale)
            )
            said_KBR = (said_KBR - centre_K11) / scale_K11
            if self.clip is not None:
                said_KBR = np.clip(said_KBR, -self.clip, self.clip)
            if not self.normalise:
                said_KBR = centre_K11 + scale_K11 * said_KBR
        # In the members' order, so that the sum is the same everywhere.
        rewards_BR = np.zeros(said_KBR.shape[1:])
        for weight, said_BR in zip(self.weights, said_KBR, strict=True):
            rewards_BR = rewards_BR + weight * said_BR
        if tokens_BR is not None:
            rewards_BR = rewards_BR - self.length_penalty * tokens_BR
        several = len(self.members) > 1
        return Rating(rewards_BR, np.std(said_KBR, axis=0) if several else None)

    def measure(self, said_KN: np.ndarray) -> Scale:
        """Returns the scale that members' rewards of N answers give.

        Raises:
          BadInput: a member gives all of them one reward.
        """
        said_KN = np.asarray(said_KN, np.float64)
        for member, said_N in zip(self.members, said_KN, strict=True):
            if np.ptp(said_N) == 0:
                raise BadInput(
                    f"scorer {member.name} gives each of theta_0's {len(said_N):,} "
                    f"answers to the evaluation prompts the reward {said_N[0]:.6g}, so "
                    "scorer.normalise and scorer.clip have no scale; use a finer "
                    "scorer, or leave them unset (in another --workdir, if it began)"
                )
        centre, scale = said_KN.mean(axis=1), said_KN.std(axis=1)
        return Scale(tuple(centre.tolist()), tuple(scale.tolist()), said_KN.shape[1])

    def _tokens(self, known: Known | None, said_KBR: np.ndarray) -> np.ndarray | None:
        """Returns the tokens of each response, if they count."""
        if not self.length_penalty:
            return None
        if known is None or known.tokens is None:
            raise BadInput(
                "scorer.length_penalty counts tokens of the policy's answers, and here "
                "texts alone are rated; leave it at 0"
            )
        return np.asarray(known.tokens, np.float64).reshape(said_KBR.shape[1:])


def rate(
    scorer: NamedScorer,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    known: Known | None = None,
) -> Rating:
    """Returns what a scorer gives to answers, with the spread of several."""
    if isinstance(scorer.function, Combination):
        return scorer.function.rate(prompts, responses, known)
    return Rating(scorer(prompts, responses, known))


def with_scale(scorer: NamedScorer, scale: Scale | None) -> NamedScorer:
    """Returns a combination with another scale."""
    assert isinstance(scorer.function, Combination)
    return replace(scorer, function=replace(scorer.function, scale=scale))


def no_average(config: ScorerConfig, field_name: str) -> NamedScorer:
    """Raises BadInput: without models there is nothing to average."""
    raise BadInput(
        'scorer.ensemble="weights" averages reward models, and a function has no '
        "weights; use predictions"
    )


def load_scorer(
    config: ScorerConfig,
    option: str = "scorer.timeout",
    field_name: str = "scorer.name",
    *,
    find: Find = find_function,
    average: Average = no_average,
) -> NamedScorer:
    """Returns the configured scorer with its options bound, or several as one.

    >>> scorer = load_scorer(ScorerConfig(name="tpmm_jax.rewards.vader:sentiment"))
    >>> scorer(["The film was"], [[" wonderful.", " awful."]])
    array([[ 0.5719, -0.4588]])

    Args:
      config: names it.
      option: the field or option that sets its timeout, for messages.
      field_name: the one that sets its name.
      find: makes a scorer of its name.
      average: makes one scorer of models that are averaged in weights.
    """
    if config.name is None:
        raise BadInput(f"{field_name} is not set")
    members: tuple[NamedScorer, ...]
    if config.ensemble == "weights":
        members = (average(config, field_name),)
    else:
        limits = Limits(config.timeout, option, config.retries)
        members = tuple(
            find(name, _place(config, field_name, k), config.options, limits)
            for k, name in enumerate(config.names)
        )
    if not config.combined:
        return members[0]
    weights = (1.0,) if config.ensemble == "weights" else config.shares
    made = Combination(
        members, weights, config.length_penalty, config.normalise, config.clip
    )
    columns = tuple(dict.fromkeys(c for one in members for c in one.columns))
    return NamedScorer(config.title, made, columns=columns, members=members)


def _place(config: ScorerConfig, field_name: str, k: int) -> str:
    """Returns the name of a member's field, for messages."""
    return field_name if isinstance(config.name, str) else f"{field_name}[{k}]"
