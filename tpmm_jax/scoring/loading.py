"""What the names of scorers and judges stand for: functions, or models of ours."""

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from tpmm_jax import rewards
from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import (
    MARGINS,
    SCORER,
    Limits,
    NamedJudge,
    NamedScorer,
    Raters,
    ScorerConfig,
    find_function,
    find_judge_function,
    whole_field,
)
from tpmm_jax.scoring.averaged import load_averaged
from tpmm_jax.scoring.judge import ModelJudge
from tpmm_jax.scoring.judge_config import JUDGE, JudgeConfig
from tpmm_jax.scoring.judge_scorer import JudgeScorer
from tpmm_jax.scoring.named import (
    REWARD,
    check_options,
    name_model,
    trained_with_chat,
)
from tpmm_jax.scoring.reward_scorer import RewardScorer, refuse_not_finite
from tpmm_jax.stopping import TIMEOUT
from tpmm_jax.weights.loading import load, load_reward
from tpmm_jax.weights.source import Model

# Returns the model that judges of (its name, the field that names it).
FindModel = Callable[[str, str], ModelJudge]


def load_scorer(
    config: ScorerConfig,
    option: str = "scorer.timeout",
    field: str = SCORER,
    *,
    judge: JudgeConfig | None = None,
    mesh: Mesh | None = None,
    date: datetime.date | None = None,
) -> NamedScorer:
    """Returns the configured scorer: functions, models of ours, or several as one.

    Args:
      option, field: what sets its time-out, and what names it, for messages.
      judge: how models that judge are asked and read; None: by the defaults.
      mesh: where models of ours lie; None: the default device.
      date: the day that their chat templates write; None: today.

    Raises:
      BadInput: names the field, and what cannot be imported or loaded.
    """
    scorer = rewards.load_scorer(
        config,
        option,
        field,
        find=_finder(mesh, date, _judge_finder(judge, mesh, date)),
        average=functools.partial(load_averaged, mesh=mesh, date=date),
    )
    _refuse_twice(scorer, field)
    return scorer


def load_raters(
    scorer: ScorerConfig,
    scorers: Mapping[str, str | Sequence[str]],
    judges: Mapping[str, str],
    *,
    scorer_field: str = SCORER,
    scorers_field: str = "evaluation.scorers",
    judges_field: str = "evaluation.judges",
    timeout: float | None = TIMEOUT,
    timeout_option: str | None = None,
    judge: JudgeConfig | None = None,
    mesh: Mesh | None = None,
    date: datetime.date | None = None,
) -> Raters:
    """Returns the raters that names give; see ``rewards.load_raters``.

    Args:
      judge, mesh, date: see ``load_scorer``.

    Raises:
      BadInput: as that does; or what labels is an independent rater as well.
    """
    model_judge = _judge_finder(judge, mesh, date)

    def find_judge(name: str, field: str, limits: Limits) -> NamedJudge:
        if name.startswith(REWARD):
            raise BadInput(
                f"{field} = {name!r}: a reward model rates answers one by one; name it "
                "under evaluation.scorers, whose answers are compared as well (win "
                "rates)"
            )
        if not name.startswith(JUDGE):
            return find_judge_function(name, field, limits)
        found = model_judge(name, field)
        return NamedJudge(name, found, digest=found.digest)

    raters = rewards.load_raters(
        scorer,
        scorers,
        judges,
        scorer_field=scorer_field,
        scorers_field=scorers_field,
        judges_field=judges_field,
        timeout=timeout,
        timeout_option=timeout_option,
        find=_finder(mesh, date, model_judge),
        find_judge=find_judge,
        average=functools.partial(load_averaged, mesh=mesh, date=date),
    )
    if raters.scorer is not None:
        _refuse_twice(raters.scorer, scorer_field)
    for label, one in raters.scorers.items():
        _refuse_twice(one, f"{scorers_field}.{label}")
    _refuse_same(raters)
    return raters


def _refuse_same(raters: Raters) -> None:
    """Raises BadInput if a model that labels is to be an independent rater too."""
    labels = [] if raters.scorer is None else raters.scorer.models
    several = "one of the models that label"
    which = several if len(labels) > 1 else "the model that labels"
    independent = {
        one.name: ("contains" if one.members else "is", one.models)
        for one in raters.scorers.values()
    }
    judges = raters.judges.values()
    independent |= {one.name: ("is", [one.digest]) for one in judges if one.digest}
    for name, (verb, models) in independent.items():
        if set(models) & set(labels):
            raise BadInput(
                f"{name} {verb} {which}; what it says of a policy "
                "that was trained on its labels shows no exploited scorer. Leave it "
                "out, or name an independent one"
            )


def check_context(raters: Raters, prompts: Sequence[Any], new_tokens: int) -> None:
    """Refuses models whose context is shorter than the rows that they are to read.

    Args:
      prompts: as they are asked; see ``Known``.
      new_tokens: that an answer may have.

    Raises:
      BadInput: names the model, and the longest row.
    """
    scorers = [*filter(None, [raters.scorer]), *raters.scorers.values()]
    asked: list[NamedScorer | NamedJudge] = [x for one in scorers for x in one.parts]
    for rater in (*asked, *raters.judges.values()):
        model = rater.function
        if isinstance(model, JudgeScorer):
            model = model.judge
        if isinstance(model, RewardScorer | ModelJudge):
            model.check_context(prompts, new_tokens)


def _judge_finder(
    given: JudgeConfig | None, mesh: Mesh | None, date: datetime.date | None
) -> FindModel:
    """Returns what makes a judge of a model's name; a model is loaded once."""
    config = JudgeConfig() if given is None else given

    @functools.cache
    def judge(source: str) -> ModelJudge:
        model = load(
            source,
            revision=config.revision,
            dtype=config.dtype,
            mesh=mesh,
            base=config.base,
        )
        refuse_not_finite(model, "the judge", "its verdicts mean nothing")
        return ModelJudge(model, config, date)

    def find(name: str, field: str) -> ModelJudge:
        source = name.removeprefix(JUDGE)
        if not source.strip():
            raise BadInput(f"{field} = {name!r} names no model; wanted judge:SOURCE")
        try:
            return judge(source)
        except BadInput as error:
            raise BadInput(f"{field} = {name!r}: {error}") from None

    return find


def _finder(
    mesh: Mesh | None, date: datetime.date | None, model_judge: FindModel
) -> rewards.Find:
    """Returns what makes a scorer of its name; a model is loaded once."""
    loaded = functools.cache(_load_model)

    def find(
        name: str, field: str, options: Mapping[str, Any], limits: Limits
    ) -> NamedScorer:
        if name.startswith(JUDGE):
            return _judge_scorer(name, field, options, model_judge)
        if not name.startswith(REWARD):
            return find_function(name, field, options, limits)
        check_options(name, options)
        source = {k: options[k] for k in ("dtype", "revision", "base") if k in options}
        try:
            model = loaded(name.removeprefix(REWARD), mesh, **source)
            chat = options.get("chat", trained_with_chat(model.origin))
            return name_model(name, model, chat, options, date)
        except BadInput as error:
            raise BadInput(f"{field} = {name!r}: {error}") from None

    return find


def _judge_scorer(
    name: str, field: str, options: Mapping[str, Any], model_judge: FindModel
) -> NamedScorer:
    """Returns a judge as what labels, or gives margins: answers of one prompt meet."""
    if whole_field(field) not in (SCORER, MARGINS):
        raise BadInput(
            f"{field} = {name!r}: a judge compares answers and gives none a number of "
            "its own, so it labels answers of a run alone (scorer.name); to compare "
            "policies, name it under evaluation.judges, or after --judge"
        )
    if options:
        raise BadInput(
            f"{field} = {name!r} has no options here; how it is asked stands in the "
            "config's section judge"
        )
    judge = model_judge(name, field)
    return NamedScorer(name, JudgeScorer(judge), digest=judge.digest)


def _refuse_twice(scorer: NamedScorer, field: str) -> None:
    """Raises BadInput if one model stands twice among the scorers that label."""
    seen: dict[str, str] = {}
    for one in scorer.members:
        if one.digest is None:
            continue
        if (other := seen.setdefault(one.digest, one.name)) != one.name:
            raise BadInput(
                f"{field}: {one.name} and {other} are one model, so their spread says "
                "nothing; name it once"
            )


def _load_model(source: str, mesh: Mesh | None, **options: Any) -> Model:
    model = load_reward(source, mesh=mesh, **options)
    refuse_not_finite(model)
    return model
