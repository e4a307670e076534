"""Log-probabilities under a model: of pairs, of tokens, and what they must satisfy."""

import functools

import jax
import jax.numpy as jnp

from tpmm_jax.axes import CHOSEN, REJECTED, Params
from tpmm_jax.losses import (
    Batch,
    Objective,
    init_loss_state,
    keep_reference_terms,
    log_probs,
    loss_inputs,
    pair_log_probs,
    pair_loss,
    pair_scores,
    with_state,
)
from tpmm_jax.models import Decoder, from_mask

# Log p(completion | prompt) [B, N] of a batch of pairs, nats.
pair_log_probs_step = jax.jit(pair_log_probs, static_argnames="decoder")


@functools.partial(jax.jit, static_argnames="decoder")
def token_log_probs_step(
    decoder: Decoder, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Returns log p of every next token [B, T-1], nats."""
    sequences = from_mask(tokens_BT, mask_BT)
    return log_probs(decoder, params, sequences)


@functools.partial(jax.jit, static_argnames="decoder")
def pair_check_step(
    decoder: Decoder,
    objective: Objective,
    params: Params,
    batch: Batch,
    shift: jax.Array,
    swap: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns D [B] and the loss with policy = reference, for the self-check.

    The loss is the batch's mean of the terms that look at the reference, without WPO's
    weights, the reference's log-probs replaced by the policy's.

    Args:
      shift: nats added to the reference's chosen log-prob, of D only.
      swap: bool scalar, whether chosen and rejected change places in D.
    """
    scores = pair_scores(decoder, params, batch, objective)
    logps = loss_inputs(scores, batch, objective)
    equal = logps._replace(reference_BN=logps.policy_BN, wpo_BN=None)
    equal, *_ = with_state(equal, init_loss_state(objective), objective)
    weight_B = batch["weight_B"]
    loss_B = pair_loss(equal, keep_reference_terms(objective))
    value = jnp.sum(weight_B * loss_B) / jnp.sum(weight_B)
    reference_BN = batch["reference_BN"].at[:, CHOSEN].add(shift)
    ratios_BN = logps.policy_BN - reference_BN
    swapped_BN = ratios_BN[:, (REJECTED, CHOSEN)]
    ratios_BN = jnp.where(swap, swapped_BN, ratios_BN)
    return ratios_BN[:, CHOSEN] - ratios_BN[:, REJECTED], value
