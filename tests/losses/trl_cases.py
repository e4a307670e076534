"""TRL's 75 cases as our configs and inputs; shared by tests and benchmarks/parity."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.losses import (
    LOSSES,
    LossConfig,
    PairLogProbs,
    completion_sums,
    pair_loss,
)
from tpmm_jax.losses.inputs import wpo_log_weights

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "dpo_losses.json"
NAMES = {loss.trl_name: name for name, loss in LOSSES.items() if loss.trl_name}
SMOOTHED = ("robust", "exo", "aot", "aot_unpaired")


def load():
    """(inputs, cases): the reference-free ones follow, in the same form."""
    data = json.loads(FIXTURE.read_text())
    return data["inputs"], data["cases"] + free_cases(data["reference_free"])


def config_of(settings):
    """TRL's settings as a LossConfig."""
    names = [NAMES.get(name, name) for name in settings["loss_types"]]
    eps = settings["label_smoothing"]
    # Robust DPO without noise is DPO, and is asked for by that name.
    names = ["dpo" if name == "robust" and not eps else name for name in names]
    alpha = settings["f_divergence_type"] == "alpha_divergence"
    weights = settings["loss_weights"]
    return LossConfig(
        name=names[0] if len(names) == 1 else names,
        weights=weights,
        beta=0.1 if names == ["sft"] else settings["beta"],
        # TRL's sigmoid ignores label smoothing.
        label_smoothing=eps if names[0] in SMOOTHED else 0.0,
        f_divergence_type=settings["f_divergence_type"],
        f_alpha_divergence_coef=settings["f_alpha_divergence_coef"] if alpha else 0.5,
        ld_alpha=settings["ld_alpha"],
        use_weighting=settings["use_weighting"],
        discopop_tau=settings["discopop_tau"],
    )


def free_cases(found):
    """The reference-free cases, with the preference term alone as the loss."""
    configs = {
        "cpo_loss/sigmoid": LossConfig(name="cpo", cpo_alpha=0.0),
        "cpo_loss/hinge": LossConfig(name="cpo_hinge", cpo_alpha=0.0),
        "cpo_loss/ipo": LossConfig(name="cpo_ipo", cpo_alpha=0.0),
        "cpo_loss/simpo/alpha=0.0": LossConfig(name="simpo", gamma_beta_ratio=5.0),
        "cpo_loss/simpo/alpha=1.0": LossConfig(
            name="alphapo", gamma_beta_ratio=5.0, alphapo_alpha=1.0
        ),
        "orpo_odds_ratio": LossConfig(name="orpo"),
    }
    assert set(configs) == set(found)
    sign = {"orpo_odds_ratio": -1}
    return [
        {
            "name": name,
            "config": config,
            "loss": sign.get(name, 1) * found[name]["mean"],
            "losses": [sign.get(name, 1) * x for x in found[name]["losses"]],
            "loss_f64": None,
            "grad_chosen": None,
            "grad_rejected": None,
            "grad_tokens": None,
            "metrics": {},
        }
        for name, config in configs.items()
    ]


def ours(case):
    return case["config"] if "config" in case else config_of(case["settings"])


def pairs_of(rows):
    """[2 B, ...] (chosen, then rejected) as [B, N, ...]."""
    rows = np.asarray(rows)
    half = len(rows) // 2
    return np.stack([rows[:half], rows[half:]], axis=1)


def loss_inputs(inputs, config, tokens_BNT, dtype):
    """PairLogProbs as the training step makes them, from per-token log-probs."""
    mask_BNT = jnp.asarray(pairs_of(inputs["completion_mask"]), jnp.int32)
    reference = np.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], 1)
    free = LOSSES[config.names[0]].kind == "reference_free"
    wpo = None
    if config.use_weighting:
        mass = jnp.asarray(pairs_of(inputs["log_sum_sq_probs"]), dtype)
        wpo = wpo_log_weights(tokens_BNT, mass, mask_BNT)
    return PairLogProbs(
        policy_BN=completion_sums(tokens_BNT, mask_BNT, config.ld_alpha),
        # TRL's sft alone logs rewards against a reference that it does not train with.
        reference_BN=None if free else jnp.asarray(reference, dtype),
        length_BN=jnp.sum(mask_BNT, axis=-1),
        plain_BN=completion_sums(tokens_BNT, mask_BNT, None),
        wpo_BN=wpo,
    )


def evaluate(inputs, case, dtype):
    """(loss, gradient of every token [B, N, T-1], inputs, losses [B]) of a case."""
    config = ours(case)
    tokens = jnp.asarray(pairs_of(inputs["per_token_logps"]), dtype)

    def mean(tokens):
        logps = loss_inputs(inputs, config, tokens, dtype)
        loss_B = pair_loss(logps, config.objective())
        if case["name"] == "orpo_odds_ratio":
            loss_B = loss_B - LOSSES["sft"].function(logps)
        return jnp.mean(loss_B), (logps, loss_B)

    (loss, (logps, loss_B)), grad = jax.value_and_grad(mean, has_aux=True)(tokens)
    return loss, grad, logps, loss_B


def gradient_error(inputs, case, grad_BNT):
    """(largest error, largest value) of the gradient, or None if there is none."""
    grad = np.asarray(grad_BNT, np.float64)
    if case["grad_tokens"] is not None:
        wanted = pairs_of(case["grad_tokens"])
        # TRL differentiates outside the completion too, where log-probs are 0.
        wanted = wanted * (pairs_of(inputs["completion_mask"])[:, :, 1:] > 0)
    elif case["grad_chosen"] is not None:
        grad = grad[:, :, inputs["prompt_len"] - 1]
        wanted = np.stack([case["grad_chosen"], case["grad_rejected"]], axis=1)
    else:
        return None
    return np.abs(grad - wanted).max(), np.abs(wanted).max()
