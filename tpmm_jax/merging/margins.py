"""Fusion weights fitted on cached margins, without the network (our reconstruction).

A merge is linear to first order: D of the merged model is about sum_k w_k D_k, with
D_k of checkpoint k alone, against theta_0. So with c_k = s w_k >= 0 the calibrated
objective is a logistic regression on K - 1 columns of numbers, convex and quick:

    f(c) = mean_P[log(1 + exp(-sum_k c_k D_k))] + tau / 2 |c - mean(c)|^2

D_0 is 0, so theta_0's own weight cannot be learned from preferences. And often the
pairs cannot tell the checkpoints apart: the weights are used only where, out of fold,
they predict held-out labels better than the plain mean does.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.evaluation import Interval, accuracy_interval
from tpmm_jax.merging.lbfgs import minimise
from tpmm_jax.merging.scale import fitted_scale

# Penalties tau that are tried, and the folds that choose among them.
PENALTIES = (0.0025, 0.025, 0.25, 2.5)
FOLDS = 5
# Of c, in units of one over the margins' root mean square: more says nothing more.
MAX_C = 100.0
# How far from optimal a solution is aimed at, and may be; see ``residual``. And steps.
TOLERANCE, ACCEPTED, MAX_STEPS = 1e-7, 1e-6, 500
# Held-out prompts without which one or two of them would decide.
LEAST_PROMPTS = 30
# Pairs and checkpoints that a compiled solver has room for.
LEAST_ROOM = 512, 8
# A checkpoint is left out whose mean D is this many standard errors below 0, and whose
# accuracy's interval lies below the second number; or whose answers are, per token,
# this many nats less probable than under the median checkpoint.
REVERSED_Z, REVERSED_ACCURACY, BROKEN_NATS = -4.0, 0.45, 2.0


@dataclass(frozen=True)
class Margins:
    """What held-out pairs say of each checkpoint.

    Attributes:
      margin_PK: D of each pair under checkpoints 1 to K - 1, against theta_0, nats,
        float64.
      prompts: the prompt of each pair, the unit of folds and of standard errors.
      drift_K: mean of log p_k - log p_0 per token over the pairs' answers, nats.
    """

    margin_PK: np.ndarray
    prompts: Sequence[Hashable]
    drift_K: np.ndarray

    def of(self, k: int) -> np.ndarray:
        """Returns D of each pair under checkpoint k; of theta_0, zeros."""
        return self.margin_PK[:, k - 1] if k else np.zeros(len(self.margin_PK))


@dataclass(frozen=True)
class Fit:
    """Weights of checkpoints 1 to K - 1, and how far to believe them.

    Attributes:
      weights_K: sum 1; 0 where a checkpoint was left out.
      learned: False: the pairs did not tell the checkpoints apart, the weights are
        equal.
      left_out: {checkpoint: why}.
      coefficients_K: c of the fit on all pairs, learned or not.
      penalty: the tau that the folds chose.
      gain, gain_error: held-out loss of the plain mean less that of the fit, out of
        fold, nats per pair, and its standard error over prompts.
      loss: mean of log(1 + exp(-sum c_k D_k)) on all pairs.
      residual: of the optimum's conditions; with one above 1e-6 nothing is learned.
      prompts: different held-out prompts; with fewer than 30 nothing is learned.
      accuracies: of each D_k, with its interval over prompts.
    """

    weights_K: np.ndarray
    learned: bool
    left_out: dict[int, str]
    coefficients_K: np.ndarray
    penalty: float
    gain: float
    gain_error: float
    loss: float
    residual: float
    prompts: int
    accuracies: list[Interval]

    def record(self) -> dict[str, Any]:
        """Returns what reference.json keeps of it."""
        return {
            "learned": self.learned,
            "left_out": {str(k): why for k, why in self.left_out.items()},
            "coefficients": self.coefficients_K.tolist(),
            "penalty": self.penalty,
            "gain": self.gain,
            "gain_error": self.gain_error,
            "held_out_loss": self.loss,
            "residual": self.residual,
            "held_out_prompts": self.prompts,
            "accuracies": [list(interval) for interval in self.accuracies],
        }


def nothing_learned(record: Mapping[str, Any], pairs: str = "held-out pairs") -> str:
    """Returns why a fit's weights are equal, of ``Fit.record``; "" where they are not.

    Of weights that were not fitted on margins, and of one checkpoint, "" as well.

    Args:
      pairs: what the pairs are called.
    """
    kept = len(record.get("accuracies", ())) - len(record.get("left_out", ()))
    if kept < 2 or record["learned"]:
        return ""
    if record["residual"] > ACCEPTED:
        return f"the weights' optimum was not found (residual {record['residual']:.1e})"
    count = record["held_out_prompts"]
    if count < LEAST_PROMPTS:
        return f"the {pairs} have {count} prompts, too few to weight checkpoints with"
    return f"the {pairs} did not tell the checkpoints apart"


def fit_weights(margins: Margins) -> Fit:
    """Returns the weights of checkpoints 1 to K - 1."""
    margin_PK, prompts = margins.margin_PK, list(margins.prompts)
    accuracies = [accuracy_interval(column_P, prompts) for column_P in margin_PK.T]
    places = {prompt: g for g, prompt in enumerate(dict.fromkeys(prompts))}
    group_P = np.asarray([places[prompt] for prompt in prompts])
    left_out = _left_out(margins, group_P, accuracies)
    kept = [k for k in range(margin_PK.shape[1]) if k + 1 not in left_out]
    # One scale for all, so that a penalty means the same for any beta.
    scale = float(np.sqrt(np.mean(margin_PK[:, kept] ** 2)))
    c_K = np.zeros(margin_PK.shape[1])
    penalty, gain, error, loss, off = PENALTIES[-1], 0.0, 0.0, float(np.log(2)), 0.0
    if len(kept) > 1 and scale > 0 and len(places) >= LEAST_PROMPTS:
        D_PK = margin_PK[:, kept] / scale
        fold_P = folds(group_P)
        c_RK, residual_R = solve(D_PK, *_problems(fold_P))
        off_T = residual_R.reshape(-1, len(PENALTIES)).max(axis=0)
        plain_P, taus = _plain_losses(D_PK, fold_P), range(len(PENALTIES))
        gains = [plain_P - _fitted_losses(D_PK, fold_P, c_RK, tau) for tau in taus]
        mean_T = np.asarray([gain_P.mean() for gain_P in gains])
        best = int(np.argmax(np.where(off_T <= ACCEPTED, mean_T, -np.inf)))
        whole = len(c_RK) - len(PENALTIES) + best
        penalty, off = PENALTIES[best], float(off_T[best])
        gain, error = clustered(gains[best], group_P)
        loss = float(np.logaddexp(0, -D_PK @ c_RK[whole]).mean())
        c_K[kept] = c_RK[whole] / scale
    learned = gain > error and c_K.sum() > 0 and off <= ACCEPTED
    weights_K = c_K if learned else np.isin(np.arange(len(c_K)), kept).astype(float)
    return Fit(
        weights_K / weights_K.sum(),
        bool(learned),
        left_out,
        c_K,
        penalty,
        gain,
        error,
        loss,
        off,
        len(places),
        accuracies,
    )


def _left_out(
    margins: Margins, group_P: np.ndarray, accuracies: Sequence[Interval]
) -> dict[int, str]:
    """Returns the checkpoints that are left out, with the reason; never all of them."""
    found: dict[int, str] = {}
    drift_K = np.concatenate([[0.0], margins.drift_K])
    for k, column_P in enumerate(margins.margin_PK.T, start=1):
        usual = float(np.median(np.delete(drift_K, k)))
        mean, error = clustered(column_P, group_P)
        accuracy = accuracies[k - 1]
        if not drift_K[k] > usual - BROKEN_NATS:
            found[k] = (
                f"the pairs' answers are {usual - drift_K[k]:.1f} nats per token less "
                "probable under it than under the others: its weights may be broken"
            )
        elif mean < REVERSED_Z * error and accuracy.high < REVERSED_ACCURACY:
            found[k] = (
                f"it prefers the rejected answers: accuracy {accuracy.mean:.2f} "
                f"[{accuracy.low:.2f}, {accuracy.high:.2f}], mean D "
                f"{mean / error:.1f} standard errors from 0"
            )
    return found if len(found) < margins.margin_PK.shape[1] else {}


def clustered(values_P: np.ndarray, group_P: np.ndarray) -> tuple[float, float]:
    """Returns the mean over pairs and its standard error, pairs of a group together.

    >>> clustered(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    (0.5, 0.5)
    """
    mean, count = float(values_P.mean()), int(group_P.max()) + 1
    if count < 2:
        return mean, float("inf")
    rest_G = np.bincount(group_P, weights=values_P - mean)
    error = np.sqrt(count / (count - 1) * np.sum(rest_G**2)) / len(values_P)
    return mean, float(error)


def folds(group_P: np.ndarray) -> np.ndarray:
    """Returns the fold of each pair; pairs of a group share one."""
    count = int(group_P.max()) + 1
    fold_G = np.random.default_rng(0).permutation(count) % min(FOLDS, count)
    return fold_G[group_P]


def _problems(fold_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights of pairs and penalties: all but a fold, then all; each tau."""
    folds = int(fold_P.max()) + 1
    used_FP = np.stack([fold_P != f for f in range(folds)] + [fold_P >= 0])
    weight_FP = used_FP / used_FP.sum(axis=1, keepdims=True)
    weight_RP = np.repeat(weight_FP, len(PENALTIES), axis=0)
    return weight_RP, np.tile(PENALTIES, folds + 1)


def _plain_losses(D_PK: np.ndarray, fold_P: np.ndarray) -> np.ndarray:
    """Returns each pair's loss under the mean of all D_k, scaled on other folds."""
    mean_P, loss_P = D_PK.mean(axis=1), np.zeros(len(D_PK))
    for f in range(int(fold_P.max()) + 1):
        out = fold_P == f
        # As far as the fit's own coefficients may go.
        scale = min(fitted_scale(mean_P[~out]), MAX_C * D_PK.shape[1])
        loss_P[out] = np.logaddexp(0, -scale * mean_P[out])
    return loss_P


def _fitted_losses(
    D_PK: np.ndarray, fold_P: np.ndarray, c_RK: np.ndarray, tau: int
) -> np.ndarray:
    """Returns each pair's loss under the fit on the other folds."""
    c_PK = c_RK[fold_P * len(PENALTIES) + tau]
    return np.logaddexp(0, -np.sum(D_PK * c_PK, axis=1))


def solve(
    D_PK: np.ndarray, weight_RP: np.ndarray, tau_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the optimum c of R problems, float64 [R, K], and its residual [R].

    minimise  sum_p weight_p log(1 + exp(-D_p c)) + tau / 2 |c - mean(c)|^2
    over      0 <= c_k <= MAX_C,   c_k = MAX_C sin(a_k)^2,   a by optax.lbfgs

    In float64, on a CPU where jax has one. Arrays are filled up to powers of two, at
    least LEAST_ROOM, so that one more checkpoint or pair seldom compiles anew.
    """
    P, K = D_PK.shape
    room_P, room_K = (room(n, least) for n, least in zip((P, K), LEAST_ROOM))
    filled_PK = np.zeros((room_P, room_K))
    filled_PK[:P, :K] = D_PK
    filled_RP = np.pad(weight_RP, ((0, 0), (0, room_P - P)))
    with jax.enable_x64(True), jax.default_device(cpu()):
        found = _solve(filled_PK, np.arange(room_K) < K, filled_RP, tau_R)
        c_RK, residual_R = jax.device_get(found)
    return c_RK[:, :K], residual_R


def room(count: int, least: int) -> int:
    """Returns the next power of two, at least ``least``, itself one."""
    return 2 ** (max(count, least) - 1).bit_length()


def cpu() -> jax.Device | None:
    """Returns a CPU device, or None where jax runs without (JAX_PLATFORMS)."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@jax.jit
def _solve(
    D_PK: jax.Array, known_K: jax.Array, weight_RP: jax.Array, tau_R: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # One after the other: side by side, each would wait for the longest line search.
    return jax.lax.map(
        lambda problem: _solve_one(D_PK, known_K, *problem), (weight_RP, tau_R)
    )


def _solve_one(
    D_PK: jax.Array, known_K: jax.Array, weight_P: jax.Array, tau: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def loss_of(c_K: jax.Array) -> jax.Array:
        mean = jnp.sum(c_K) / jnp.sum(known_K)
        apart_K = jnp.where(known_K, c_K - mean, 0.0)
        return _data_loss(c_K, D_PK, weight_P) + tau / 2 * jnp.sum(apart_K**2)

    def loss(a_K: jax.Array) -> jax.Array:
        return loss_of(_coefficients(a_K, known_K))

    def residual(a_K: jax.Array) -> jax.Array:
        """How far one projected gradient step moves c: 0 at the optimum alone."""
        c_K = _coefficients(a_K, known_K)
        moved_K = jnp.clip(c_K - jax.grad(loss_of)(c_K), 0, MAX_C)
        return jnp.max(jnp.where(known_K, jnp.abs(c_K - moved_K), 0.0))

    # Where c is one over the root mean square of D.
    a_K = jnp.full(D_PK.shape[1], jnp.arcsin(MAX_C**-0.5))
    a_K, off = minimise(loss, a_K, residual, tolerance=TOLERANCE, most=MAX_STEPS)
    return _coefficients(a_K, known_K), off


def _coefficients(a_K: jax.Array, known_K: jax.Array) -> jax.Array:
    return jnp.where(known_K, MAX_C * jnp.sin(a_K) ** 2, 0.0)


@jax.custom_vjp
def _data_loss(c_K: jax.Array, D_PK: jax.Array, weight_P: jax.Array) -> jax.Array:
    """Returns sum_p weight_p log(1 + exp(-D_p c))."""
    return _data_loss_and_gradient(c_K, D_PK, weight_P)[0]


def _data_loss_and_gradient(
    c_K: jax.Array, D_PK: jax.Array, weight_P: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # One exponential serves both.
    margin_P = D_PK @ c_K
    small_P = jnp.exp(-jnp.abs(margin_P))
    loss_P = jnp.maximum(-margin_P, 0) + jnp.log1p(small_P)
    wrong_P = jnp.where(margin_P > 0, small_P, 1) / (1 + small_P)
    gradient_K = -((weight_P * wrong_P) @ D_PK)
    return jnp.sum(weight_P * loss_P), gradient_K


def _backward(gradient_K: jax.Array, cotangent: jax.Array) -> tuple:
    return cotangent * gradient_K, None, None


_data_loss.defvjp(_data_loss_and_gradient, _backward)
