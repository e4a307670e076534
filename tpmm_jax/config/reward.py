"""The configuration of a reward model's training, from the rooms' own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields

from tpmm_jax.config.fields import ReportTo, check_types
from tpmm_jax.config.model import ModelSource
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import RewardLossConfig
from tpmm_jax.merging import EXPERT_RULES, ExpertMergeConfig
from tpmm_jax.mesh import MeshConfig
from tpmm_jax.models import NoiseConfig
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.rewards import check_label
from tpmm_jax.steps import TrainConfig

# The held-out pairs' name among the sets of a reward run.
HELD_OUT = "heldout"
# Names in a row of metrics that are no set's.
_RESERVED = (
    *(HELD_OUT, "pairs", "trajectory", "watch", "calibration", "time", "step"),
    "router",
)


@dataclass(frozen=True, kw_only=True)
class RewardEvaluationConfig:
    """Measuring a reward model on pairs that train nothing.

    Attributes:
      holdout_fraction: share of the prompts whose pairs are held out. A prompt's
        content and the seed decide, so that all pairs of a prompt are on one side.
      every: optimizer steps between evaluations; the model that training begins with
        and the last one are evaluated too.
      patience: training ends after so many evaluations in a row without a lower
        held-out loss; None: it goes through all its steps.
      sets: further test sets by name, of the training's domain or of others: pairs,
        ratings or the workdir of a run, whatever trains. Files and columns tell which.
      best_of: answers of one choice where a prompt has a chosen answer with several
        rejected ones: 4 is one chosen and three rejected, chance 1 / 4.
    """

    holdout_fraction: float = 0.1
    every: int = 50
    patience: int | None = None
    sets: Mapping[str, str] = field(default_factory=dict)
    best_of: int = 4

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        if not 0 < self.holdout_fraction < 1:
            raise BadInput(
                f"evaluation.holdout_fraction is {self.holdout_fraction}; use a number "
                "between 0 and 1 (0.1 is usual): without held-out pairs nobody could "
                "tell whether the model has learned anything"
            )
        if self.every < 1:
            raise BadInput(f"evaluation.every is {self.every}; use at least 1 step")
        if self.patience is not None and self.patience < 1:
            raise BadInput(
                f"evaluation.patience is {self.patience}; use at least 1, or none"
            )
        if self.best_of < 3:
            raise BadInput(
                f"evaluation.best_of is {self.best_of}; use at least 3 (a choice of 2 "
                "is the accuracy of pairs)"
            )
        for name in self.sets:
            check_label(name, "evaluation.sets")
            if name in _RESERVED:
                raise BadInput(
                    f"evaluation.sets.{name}: there are metrics of that name already; "
                    "choose another name"
                )


@dataclass(frozen=True, kw_only=True)
class MergeBackConfig:
    """What the best model's experts are merged into at the end, where it has some.

    Attributes:
      rules: keys of merging.EXPERT_RULES; each gives a dense model, in
        WORKDIR/merged/RULE, which is measured beside the mixture. Empty: none.
      learning_rate, steps, batch_size, holdout: of "learned", on the run's held-out
        pairs; see ``merging.ExpertMergeConfig``.
    """

    rules: Sequence[str] = tuple(EXPERT_RULES)
    learning_rate: float = 0.1
    steps: int = 100
    batch_size: int = 32
    holdout: float = 0.2

    def of(self, rule: str, seed: int) -> ExpertMergeConfig:
        """Returns the settings of one of the rules."""
        return ExpertMergeConfig(
            rule=rule,
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            holdout=self.holdout,
            seed=seed,
        )

    def validate(self) -> None:
        """Raises BadInput for a value out of range, or one that nothing would read."""
        unknown = [rule for rule in self.rules if rule not in EXPERT_RULES]
        if unknown or len(set(self.rules)) < len(self.rules):
            raise BadInput(
                f"merge.rules is {list(self.rules)}; use different ones of "
                f"{', '.join(EXPERT_RULES)}, or none"
            )
        self.of("learned", 0).validate()
        if "learned" not in self.rules and (changed := self.changed({"rules"})):
            raise BadInput(
                f"{changed} has no meaning without the rule learned; leave it unset, "
                "or add learned to merge.rules"
            )

    def changed(self, but: Collection[str] = ()) -> str:
        """Returns the first field that is not at its default, as "merge.x is y"."""
        for f in fields(self):
            value = getattr(self, f.name)
            same = (
                tuple(value) == f.default if f.name == "rules" else value == f.default
            )
            if f.name not in but and not same:
                return f"merge.{f.name} is {value}"
        return ""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The training of one reward model, by tpmm train_reward.

    Attributes:
      seed: the seed of everything random: the new head, the split, the order.
      order_seed: of the order in which the pairs train, and of dropout, if it is not
        ``seed``. Models that are to be averaged keep ``seed``, and with it the start of
        the head and what is held out, and differ in this alone.
      model: what training begins with: a causal model, which gets a new head, or a
        reward model, which is trained further.
      experts: routed experts that the model is given before it is trained.
      noise: of training.
      merge: what a mixture's experts are merged into at the end.
      report_to: "wandb", "mlflow" or a list: where metrics are sent too.
    """

    seed: int = 0
    order_seed: int | None = None
    model: ModelSource
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: RewardDataConfig
    loss: RewardLossConfig = field(default_factory=RewardLossConfig)
    experts: UpcyclingConfig = field(default_factory=UpcyclingConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    train: TrainConfig
    evaluation: RewardEvaluationConfig = field(default_factory=RewardEvaluationConfig)
    merge: MergeBackConfig = field(default_factory=MergeBackConfig)
    report_to: ReportTo = ()

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The rows of the batches that devices share, by what sets them."""
        return self.train.batch_sizes

    def validate(self) -> None:
        """Checks types, ranges and combinations.

        Raises:
          BadInput: names the field, what was wanted and what to do.
        """
        check_types(self)
        for name in ("seed", "order_seed"):
            if (getattr(self, name) or 0) < 0:
                raise BadInput(f"{name} is {getattr(self, name)}; use 0 or more")
        self.model.lora.validate()
        default = ModelSource(source="").logits_chunk_mib
        if self.model.logits_chunk_mib != default:
            raise BadInput(
                "model.logits_chunk_mib is for logits, which a reward model does not "
                "have; leave it unset"
            )
        self.data.validate()
        self.loss.validate()
        self.experts.validate()
        self._check_noise()
        self.train.validate()
        self.evaluation.validate()
        self.merge.validate()

    def _check_noise(self) -> None:
        for name, most in (("dropout", 1.0), ("jitter", 1.0)):
            value = getattr(self.noise, name)
            if not 0 <= value < most:
                raise BadInput(f"noise.{name} is {value}; use a number in [0, 1)")


# What may differ when a run is continued: none of it changes finished work.
REWARD_MAY_CHANGE = (
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.expert",
    "model.attention",
    "model.remat",
    "train.accumulation",
    "train.checkpoint_every",
    "data.timeout",
    "report_to",
)
