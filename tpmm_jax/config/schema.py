"""A run's configuration: composed of the packages' own, read, typed, validated."""

import dataclasses
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tpmm_jax.config.fields import ReportTo, check_types
from tpmm_jax.config.model import ModelSource
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput, nearest
from tpmm_jax.evaluation import MAX_KL_PER_TOKEN, MAX_LENGTH_RATIO
from tpmm_jax.losses import LossConfig, names_of
from tpmm_jax.merging import NO_REFERENCE, RULES, ReferenceConfig
from tpmm_jax.mesh import MeshConfig
from tpmm_jax.rewards import (
    COLUMN,
    MARGINS,
    MadpoConfig,
    PairingConfig,
    ScorerConfig,
    check_label,
    check_names,
)
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.scoring import JUDGE, JudgeConfig
from tpmm_jax.steps import TrainConfig
from tpmm_jax.stopping import TIMEOUT

# Heads of an iteration's metrics: a prompt set of such a name would be taken for one.
RESERVED_SETS = (
    "evaluation", "reward", "rewards", "length", "kl", "distinct", "win", "heldout",
    "score", "judge", "watch", "merge", "pairs", "rollout", "reference", "labels",
    "margins", "madpo", "ship", "ship-last", "ship-mean",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(SamplingConfig):
    """Sampling from the policy in each iteration.

    Attributes:
      prompts_per_iteration: each iteration's own prompts, held-out ones included.
      samples_per_prompt: R; 4 to 8 is usual.
      batch_size: prompts that are sampled at once.
    """

    prompts_per_iteration: int = 256
    samples_per_prompt: int = 4
    batch_size: int = 32

    def sampling(self) -> SamplingConfig:
        """Returns the part that a sampler reads."""
        fields = dataclasses.fields(SamplingConfig)
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in fields})


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Sampling theta_t on the same prompts after every iteration.

    Attributes:
      num_prompts: how many of data.eval_prompts, or of data.prompts set aside, and the
        first so many of each further set; at least 2.
      samples_per_prompt: drawn with rollout's temperature, top_p and top_k.
      sets: further prompts by name, out of the training's domain; sources like
        data.prompts.
      scorers: further scorers by label, "module:function" or "reward:SOURCE", or a
        list of these, whose mean is taken; independent of the one that labels.
      judges: by label, "module:function", see rewards.Judge, or "judge:SOURCE", a
        model.
      timeout: seconds that one call of those may take, for one batch; None: for ever.
      random: labels of scorers and judges that may say something else of the same
        texts at every call; see scorer.deterministic.
      max_kl_per_token: the watch warns above this KL to theta_0, in nats per token.
      max_length_ratio: the watch warns when the mean length leaves [1 / ratio, ratio]
        times theta_0's.
    """

    num_prompts: int = 64
    samples_per_prompt: int = 1
    sets: Mapping[str, str] = field(default_factory=dict)
    scorers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = TIMEOUT
    random: Sequence[str] = ()
    max_kl_per_token: float = MAX_KL_PER_TOKEN
    max_length_ratio: float = MAX_LENGTH_RATIO

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        if self.num_prompts < 2:
            raise BadInput(
                f"evaluation.num_prompts is {self.num_prompts}; use at least 2: the "
                "interval of a mean needs its spread over prompts"
            )
        for what in ("sets", "scorers", "judges"):
            for label in getattr(self, what):
                check_label(label, f"evaluation.{what}")
        for label, name in self.scorers.items():
            check_names(name, f"evaluation.scorers.{label}")
        for label in self.random:
            if label not in {*self.scorers, *self.judges}:
                raise BadInput(
                    f"evaluation.random names {label!r}, which is neither of "
                    "evaluation.scorers nor of evaluation.judges"
                    + nearest(label, [*self.scorers, *self.judges])
                )
        for name in self.sets:
            if name in RESERVED_SETS:
                raise BadInput(
                    f"evaluation.sets.{name}: there are metrics of that name already; "
                    "choose another name"
                )
        if self.max_kl_per_token <= 0:
            raise BadInput(
                f"evaluation.max_kl_per_token is {self.max_kl_per_token}; use a number "
                "above 0, in nats"
            )
        if self.max_length_ratio <= 1:
            raise BadInput(
                f"evaluation.max_length_ratio is {self.max_length_ratio}; use a number "
                "above 1"
            )


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How the trajectory is kept.

    Attributes:
      storage: every step in float32, or theta_0 and bfloat16 deltas to it (half the
        disk; the next iteration starts from what was stored).
    """

    storage: Literal["float32", "bfloat16_delta"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of iterative preference optimisation.

    Attributes:
      iterations: T.
      seed: the seed of everything random.
      train_from: where an iteration's training begins: at the "previous" policy, at
        "theta_0" (with reference.rule=best the guide of Pre-DPO), or at the merged
        "reference".
      ship: the policy that the run recommends, and that its workdir names: "last",
        theta_t; "mean", the mean of theta_0 to theta_t; "learned", their mean with
        weights that are fitted on held-out samples and their rewards; "auto", the
        better of last and mean on held-out prompts, theta_t within one standard error.
        The mean is evaluated beside theta_t in every iteration.
      report_to: "wandb", "mlflow" or a list: where metrics are sent too.
    """

    iterations: int
    seed: int = 0
    model: ModelSource
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    pairing: PairingConfig = field(default_factory=PairingConfig)
    madpo: MadpoConfig = field(default_factory=MadpoConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    train_from: Literal["previous", "theta_0", "reference"] = "previous"
    ship: Literal["last", "mean", "learned", "auto"] = "last"
    report_to: ReportTo = ()

    @property
    def offline(self) -> bool:
        """Whether pairs are given instead of sampled."""
        return self.data.pairs is not None

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The rows of the batches that devices share, by what sets them."""
        sizes = self.train.batch_sizes
        if self.data.prompts is not None or self.data.eval_prompts is not None:
            sizes["rollout.batch_size"] = self.rollout.batch_size
        return sizes

    def validate(self) -> None:
        """Checks types, ranges and combinations.

        Raises:
          BadInput: names the field, what was wanted and what to do.
        """
        check_types(self)
        self.model.lora.validate()
        if self.model.adapters and self.store.storage != "float32":
            raise BadInput(
                f"store.storage is {self.store.storage}, but with model.lora.rank the "
                "trajectory holds adapters alone, in float32; leave store.storage unset"
            )
        for name in (
            "iterations", "model.logits_chunk_mib", "rollout.prompts_per_iteration",
            "rollout.batch_size", "evaluation.samples_per_prompt",
            "data.max_prompt_length", "data.max_completion_length",
        ):  # fmt: skip
            if (value := operator.attrgetter(name)(self)) < 1:
                raise BadInput(f"{name} is {value}; use at least 1")
        for name in ("data.timeout", "scorer.timeout", "evaluation.timeout"):
            if (value := operator.attrgetter(name)(self)) is not None and value <= 0:
                raise BadInput(
                    f"{name} is {value}; use a number of seconds above 0, or none"
                )
        self.scorer.validate()
        self.data.validate()
        self.rollout.validate("rollout.{}".format)
        self.pairing.validate()
        self.madpo.validate()
        self.reference.validate((*RULES, NO_REFERENCE))
        self.loss.validate()
        self._validate_loss_and_reference()
        self._validate_margins()
        self.train.validate()
        self.evaluation.validate()
        self._validate_judges()
        self._validate_start()
        self._validate_ship()
        if self.seed < 0:
            raise BadInput(f"seed is {self.seed}; use 0 or more")
        if self.reference.uses_holdout and self.pairing.holdout_fraction == 0:
            raise BadInput(
                f"reference.rule={self.reference.rule} needs held-out pairs; set "
                "pairing.holdout_fraction above 0 (0.25 is usual)"
            )
        if self.offline:
            self._validate_offline()
        elif self.scorer.name is None:
            raise BadInput(
                'data.prompts needs a scorer: set scorer.name to "module:function"'
            )
        elif self.rollout.samples_per_prompt < 2 or self.rollout.temperature == 0:
            raise BadInput(
                "pairs need different responses: rollout.samples_per_prompt must be at "
                f"least 2 (is {self.rollout.samples_per_prompt}) and "
                f"rollout.temperature above 0 (is {self.rollout.temperature})"
            )

    def _validate_loss_and_reference(self) -> None:
        """Refuses what a loss cannot train with, or would ignore."""
        rule, free = self.reference.rule, self.loss.reference_free
        if self.loss.coupled and self.train.batch_size < 2:
            raise BadInput(
                f"loss.name {self.loss.title!r} compares the pairs of a batch, and "
                "train.batch_size is 1; use at least 2"
            )
        if self.loss.coupled and self.pairing.weights != "equal":
            raise BadInput(
                f"pairing.weights={self.pairing.weights} weighs each pair's own loss, "
                f"and loss.name {self.loss.title!r} takes a batch's pairs together; "
                "leave pairing.weights unset, or choose another loss"
            )
        if self.reference.mix == "log_probs" and not self.loss.of_margins:
            raise BadInput(
                "reference.mix=log_probs is a mixture up to a constant of the prompt, "
                f"which cancels in a pair's D alone, and loss.name {self.loss.title!r} "
                "sees more of the reference; leave reference.mix unset, or use dpo or "
                "ipo of summed log-probs (loss.length_normalized=false)"
            )
        if free and rule != NO_REFERENCE:
            raise BadInput(
                f"loss.name {self.loss.title!r} has no reference, so "
                f"reference.rule={rule} would be ignored; set "
                f"reference.rule={NO_REFERENCE}, or choose another loss"
            )
        if rule == NO_REFERENCE and not free:
            raise BadInput(
                f"loss.name {self.loss.title!r} needs a reference; set reference.rule "
                f"to one of {', '.join(RULES)}, or choose a loss without a reference: "
                f"{', '.join(names_of('reference_free'))}"
            )

    def _validate_start(self) -> None:
        """Refuses a start that there is not."""
        why = ""
        if self.train_from != "previous" and self.reference.rule == "trust_region":
            why = "trust_region moves its reference from the previous policy on"
        if self.train_from == "reference":
            if self.reference.rule == NO_REFERENCE:
                why = "there is no reference"
            if self.reference.mix == "log_probs":
                why = "with reference.mix=log_probs nothing is merged"
            if self.model.adapters:
                why = "a merge of LoRA adapters has a larger rank than one of them"
        if why:
            raise BadInput(f"train_from={self.train_from}: {why}; use previous")

    def _validate_ship(self) -> None:
        """Refuses a choice that nothing could be made by."""
        if self.ship not in ("auto", "learned"):
            return
        share, count = self.pairing.holdout_fraction, self.rollout.prompts_per_iteration
        if self.offline:
            raise BadInput(
                f"ship={self.ship} reads rewards on held-out prompts, and with "
                "data.pairs there are none; use ship=mean or last"
            )
        if round(share * count) < 2:
            raise BadInput(
                f"ship={self.ship} needs held-out prompts, two or more an iteration: "
                f"of rollout.prompts_per_iteration={count} a share of {share:g} is "
                "held out (pairing.holdout_fraction); raise one of the two"
            )
        drawn = self.rollout
        if self.ship == "learned" and (
            drawn.temperature != 1 or drawn.top_p != 1 or drawn.top_k != 0
        ):
            raise BadInput(
                "ship=learned weighs samples by their probability under the policies "
                "themselves, so they have to be drawn from one: set "
                "rollout.temperature=1 and leave top_p and top_k unset, or use "
                "ship=mean or auto"
            )
        judged = all(name.startswith(JUDGE) for name in self.scorer.names)
        if self.ship == "auto" and judged:
            raise BadInput(
                f"ship=auto with scorer.name {self.scorer.name}: a judge's rewards are "
                "shares of wins among one policy's answers, whose mean is 0.5 for "
                "every policy; use ship=mean or last"
            )

    def _validate_margins(self) -> None:
        """Refuses margins that are missing, that nothing reads, or that none gives."""
        source, rule = self.madpo.margins, self.pairing.margins
        weighs = self.loss.needs_margins
        if source is None and (weighs or rule != "keep"):
            what = "loss.name 'madpo'" if weighs else f"pairing.margins={rule}"
            raise BadInput(
                f'{what} needs margins: set {MARGINS} to "reward:SOURCE", a reward '
                'model, to a scorer "module:function", or to "column", the margins of '
                "data.pairs"
            )
        if source is not None and not weighs and rule == "keep":
            raise BadInput(
                f"{MARGINS} is {source!r}, but nothing would read the margins; set "
                "loss.name=madpo or pairing.margins, or leave it unset"
            )
        if source == COLUMN and not self.offline:
            raise BadInput(
                f'{MARGINS}="column" takes the margins of data.pairs, but answers are '
                'sampled; set it to "reward:SOURCE" or "module:function"'
            )
        if self.pairing.labels == "bt" and self.offline:
            raise BadInput(
                "pairing.labels=bt draws labels by the rewards of sampled answers; "
                "data.pairs are labelled already: leave it unset"
            )

    def _validate_judges(self) -> None:
        """Refuses what no judge reads, and a scale of what a judge alone rates."""
        names, judges = self.scorer.names, self.evaluation.judges.values()
        self.judge.validate([*names, self.madpo.margins, *judges])
        if names and self.scorer.scaled and all(x.startswith(JUDGE) for x in names):
            raise BadInput(
                f"scorer.normalise or scorer.clip with scorer.name {self.scorer.name}: "
                "a judge's rewards are shares of wins, whose mean is 0.5 for every "
                "policy; leave both unset"
            )

    def _validate_offline(self) -> None:
        if self.scorer.name is not None and self.data.eval_prompts is None:
            raise BadInput(
                "with data.pairs a scorer is used for evaluation only: set "
                "data.eval_prompts too, or leave scorer.name unset"
            )
        if judges := [x for x in self.scorer.names if x.startswith(JUDGE)]:
            raise BadInput(
                f"scorer.name is {judges[0]!r}, which compares answers of one "
                "prompt to label them, and data.pairs are labelled already; name it "
                "under evaluation.judges"
            )
        for name in ("sets", "scorers", "judges"):
            if getattr(self.evaluation, name) and self.data.eval_prompts is None:
                raise BadInput(
                    f"with data.pairs, evaluation.{name} needs prompts to sample from: "
                    "set data.eval_prompts too"
                )


# What may differ when a run is continued: none of it changes finished work.
MAY_CHANGE = (
    "iterations",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.expert",
    "model.attention",
    "model.logits_chunk_mib",
    "model.remat",
    "rollout.batch_size",
    "train.accumulation",
    "train.checkpoint_every",
    "data.timeout",
    "scorer.timeout",
    "evaluation.timeout",
    "evaluation.max_kl_per_token",
    "evaluation.max_length_ratio",
    "evaluation.random",
    "judge.batch_size",
    "scorer.deterministic",
    "scorer.retries",
    "report_to",
)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the nested JSON form."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
