"""From a model and a batch of pairs to the loss: scores, then the loss of scores."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.losses.batchwise import init_moving, moving_metrics, update_moving
from tpmm_jax.losses.config import LossConfig
from tpmm_jax.losses.gradients import Batch, CoupledLoss, LossFn, Metrics
from tpmm_jax.losses.inputs import (
    Moving,
    PairLogProbs,
    Scalar,
    completion_sums,
    wpo_log_weights,
)
from tpmm_jax.losses.logprobs import log_probs_and_mass
from tpmm_jax.losses.objective import Objective, pair_loss, pair_metrics
from tpmm_jax.losses.registry import is_coupled, is_reference_free
from tpmm_jax.mesh import BATCH, constrain
from tpmm_jax.models import Adapted, Decoder, from_mask

# beta-DPO's statistics, or nothing.
LossState = Moving | tuple[()]


class PairScores(NamedTuple):
    """What a model says of a batch of pairs; see PairLogProbs."""

    policy_BN: jax.Array
    plain_BN: jax.Array
    wpo_BN: jax.Array | None


def _token_log_probs(
    decoder: Decoder, params: Params | Adapted, batch: Batch, *, mass: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Returns ``log_probs_and_mass`` of a batch of pairs [B, N, T - 1], nats."""
    B, N, T = batch["tokens_BNT"].shape
    rows = (batch[name].reshape(B * N, T) for name in ("tokens_BNT", "mask_BNT"))
    sequences = from_mask(*(constrain(x, decoder.mesh, BATCH) for x in rows))
    logp, masses = log_probs_and_mass(decoder, params, sequences, mass=mass)
    shape = (B, N, T - 1)
    return logp.reshape(shape), None if masses is None else masses.reshape(shape)


def pair_log_probs(
    decoder: Decoder,
    params: Params | Adapted,
    batch: Batch,
    *,
    ld_alpha: Scalar | None = None,
) -> jax.Array:
    """Returns log p(completion | prompt) [B, N] of a batch of pairs, nats.

    Args:
      batch: tokens_BNT, mask_BNT, completion_mask_BNT, int32.
      ld_alpha: weight of tokens beyond the shorter completion's length; None: 1.
    """
    logp_BNT, _ = _token_log_probs(decoder, params, batch)
    return completion_sums(logp_BNT, batch["completion_mask_BNT"], ld_alpha)


def pair_scores(
    decoder: Decoder, params: Params | Adapted, batch: Batch, objective: Objective
) -> PairScores:
    """Returns the policy's part of a loss's inputs; differentiable."""
    weighs = bool(objective.get("use_weighting"))
    logp_BNT, mass_BNT = _token_log_probs(decoder, params, batch, mass=weighs)
    completion_BNT = batch["completion_mask_BNT"]
    plain_BN = completion_sums(logp_BNT, completion_BNT, None)
    policy_BN = plain_BN
    if (ld_alpha := objective.get("ld_alpha")) is not None:
        policy_BN = completion_sums(logp_BNT, completion_BNT, ld_alpha)
    wpo_BN = None
    if mass_BNT is not None:
        wpo_BN = wpo_log_weights(logp_BNT, mass_BNT, completion_BNT)
    return PairScores(policy_BN, plain_BN, wpo_BN)


def loss_inputs(scores: PairScores, batch: Batch, objective: Objective) -> PairLogProbs:
    """Returns a loss's inputs from the policy's scores and the batch's columns."""
    mean_length_B = batch.get("mean_length_B")
    free = is_reference_free(objective.names)
    return PairLogProbs(
        **scores._asdict(),
        reference_BN=None if free else batch["reference_BN"],
        length_BN=jnp.sum(batch["completion_mask_BNT"], axis=-1),
        weight_B=batch["weight_B"],
        mean_length=None if mean_length_B is None else mean_length_B[0],
        reward_margin_B=batch.get("margin_B"),
    )


def preference_loss(decoder: Decoder, objective: Objective) -> LossFn:
    """Returns the loss function of pairs; for losses that do not couple them.

    The batch: tokens_BNT, mask_BNT, completion_mask_BNT int32; reference_BN float32
    nats, unless the loss has no reference; weight_B float32, 0 for rows that only
    fill the batch; margin_B float32, where the loss needs the rewards' margins; trust_B
    float32, what each pair's loss counts, mean 1 over an iteration; without it, 1.
    """
    assert not is_coupled(objective.names)
    whole = coupled_loss(decoder, objective)

    def loss_fn(
        params: Params | Adapted, batch: Batch, total_weight: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        scores = whole.scores(params, batch)
        value, (metrics, _) = whole.loss(scores, batch, total_weight, ())
        return value, metrics

    return loss_fn


def coupled_loss(decoder: Decoder, objective: Objective) -> CoupledLoss:
    """Returns the loss of a whole batch's scores; for every loss."""

    def loss(
        scores: PairScores, batch: Batch, total_weight: jax.Array, state: LossState
    ) -> tuple[jax.Array, tuple[Metrics, LossState]]:
        logps = loss_inputs(scores, batch, objective)
        logps, state, ours = with_state(logps, state, objective)
        weight_B = batch["weight_B"] / total_weight
        loss_B = pair_loss(logps, objective) * batch.get("trust_B", 1.0)
        value = jnp.sum(weight_B * loss_B)
        means = {
            name: jnp.sum(weight_B * x)
            for name, x in pair_metrics(logps, objective).items()
        }
        return value, ({**means, **ours}, state)

    scores = functools.partial(pair_scores, decoder, objective=objective)
    return CoupledLoss(scores, loss)


def init_loss_state(
    loss: LossConfig | Objective, seed: list[int] | int = 0
) -> LossState:
    """Returns what losses carry from step to step, at step 0.

    Args:
      seed: of what a loss draws; a list as for numpy's generators.

    >>> init_loss_state(LossConfig(name="dpo"))
    ()
    >>> int(init_loss_state(LossConfig(name="beta_dpo")).seen)
    0
    """
    if "beta_dpo" not in loss.names:
        return ()
    return init_moving(int(np.random.default_rng(seed).integers(2**31)))


def with_state(
    logps: PairLogProbs, state: LossState, objective: Objective
) -> tuple[PairLogProbs, LossState, Metrics]:
    """Returns (inputs, next state, metrics) of losses that carry something.

    >>> objective = LossConfig(name="beta_dpo").objective()
    >>> state = init_loss_state(objective)
    >>> logps, state, metrics = with_state(example_pair(), state, objective)
    >>> float(state.mean), round(float(metrics["beta_dpo/beta"]), 3)
    (3.0, 0.1)
    """
    if not isinstance(state, Moving):
        return logps, state, {}
    moving = objective.call(update_moving, state, logps)
    logps = logps._replace(moving=moving)
    return logps, moving, objective.call(moving_metrics, logps)
