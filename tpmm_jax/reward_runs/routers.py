"""What the routers of a mixture do, and how far its experts have moved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.loop.run import Disk
from tpmm_jax.mesh import fetch
from tpmm_jax.models import ExpertsConfig, ModelConfig
from tpmm_jax.reward_runs.plan import RewardPlan

# The file of the best model's tables.
ROUTERS = "router.json"
# An expert with less than this part of an even share is dead.
DEAD = 0.1
_MATRICES = ("gate", "up", "down")


@dataclass
class Routing:
    """Sums over tokens of what routers report; see ``rewards_and_routing_step``."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, sums: Mapping[str, Any]) -> None:
        """Adds the sums of a batch, in float64."""
        for name, found in sums.items():
            found = fetch(found).astype(np.float64)
            self.sums[name] = self.sums.get(name, 0.0) + found


@dataclass(frozen=True)
class Start:
    """What distances are measured from.

    Attributes:
      routed: of each layer with experts the dense feed-forward that they were copied
        from [L, D, F], or where training began with a mixture, its experts
        [L, X, D, F]; by matrix, on the host.
      shared: of each layer with experts the shared one, likewise; {} without one.
      dense: whether it is the dense feed-forward.
    """

    routed: Mapping[str, np.ndarray]
    shared: Mapping[str, np.ndarray]
    dense: bool


def read_start(plan: RewardPlan, disk: Disk) -> Start | None:
    """Returns what the experts began as; None of a dense model."""
    experts = plan.decoder.config.experts
    if experts is None:
        return None
    params = disk.policy(0)
    shared = {}
    if experts.shared is not None:
        places = np.asarray(experts.places(plan.decoder.config.num_layers))
        mlp = _host(params["layers"]["mlp"])
        shared = {name: w[places] for name, w in mlp.items()}
    dense = plan.config.experts.count > 0
    routed = shared if dense else _host(params["experts"])
    return Start(routed, shared, dense)


def _host(weights: Params) -> dict[str, np.ndarray]:
    return {name: fetch(weights[name]) for name in _MATRICES}


def describe(
    config: ModelConfig, params: Params, routing: Routing, start: Start
) -> dict[str, Any]:
    """Returns the tables of router.json, a row for each layer with experts.

    Distances are those of an expert's three matrices taken together (Frobenius), over
    the norm of what it began as: ``from_start`` of each routed expert,
    ``shared_from_start``, and of every two routed experts the mean (``apart``) and the
    smallest (``closest``).
    """
    experts = config.experts
    assert experts is not None
    places = list(experts.places(config.num_layers))
    found = {
        "layers": places,
        "experts": experts.count,
        "top_k": experts.top_k,
        "start": "dense" if start.dense else "own",
        "dead_below": DEAD / experts.count,
    }
    found |= _usage({n: x[places] for n, x in routing.sums.items()}, experts, places)
    found |= _distances(params["experts"], start.routed)
    if start.shared:
        mlp = params["layers"]["mlp"]
        where = np.asarray(places)
        own = {name: jnp.take(mlp[name], where, axis=0)[:, None] for name in _MATRICES}
        alone = _distances(own, start.shared)
        found["shared_from_start"] = [row[0] for row in alone["from_start"]]
    return found


def _usage(
    sums: Mapping[str, np.ndarray], experts: ExpertsConfig, places: list[int]
) -> dict[str, Any]:
    """Returns shares, probabilities, entropy and load balance by layer."""
    tokens_L1 = sums["share_LX"].sum(axis=1, keepdims=True)
    share_LX = sums["share_LX"] / tokens_L1
    probability_LX = sums["probability_LX"] / tokens_L1
    dead = np.argwhere(share_LX < DEAD / experts.count)
    balance_L = experts.count * (share_LX * probability_LX).sum(axis=1)
    return {
        "tokens": round(float(tokens_L1[0, 0])),
        "share": share_LX.tolist(),
        "probability": probability_LX.tolist(),
        "entropy": (sums["entropy_L"] / tokens_L1[:, 0]).tolist(),
        "load_balance": balance_L.tolist(),
        "dead": [[places[row], int(expert)] for row, expert in dead],
    }


def _distances(
    experts: Mapping[str, jax.Array], start: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns ``from_start`` and, of two experts and more, how far apart they are."""
    parts = [_squares(experts[name], jnp.asarray(start[name])) for name in _MATRICES]
    moved_LX, norm_LX, gram_LXX = (
        np.sum([fetch(part[at]).astype(np.float64) for part in parts], axis=0)
        for at in range(3)
    )
    found = {"from_start": np.sqrt(moved_LX / norm_LX).tolist()}
    own_LX = np.einsum("LXX->LX", gram_LXX)
    square_LXX = own_LX[:, :, None] + own_LX[:, None] - 2 * gram_LXX
    pairs = np.triu_indices(own_LX.shape[1], 1)
    if len(pairs[0]):
        square_LP = np.maximum(square_LXX[:, *pairs], 0.0)
        apart_LP = np.sqrt(square_LP / norm_LX.mean(axis=1, keepdims=True))
        found |= {
            "apart": apart_LP.mean(axis=1).tolist(),
            "closest": apart_LP.min(axis=1).tolist(),
        }
    return found


@jax.jit
def _squares(
    w_LXDF: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns |w - start|^2, |start|^2 [L, X] and the products of w - w_0 [L, X, X].

    Of equal experts the products are 0 exactly.
    """

    def layer(both: tuple[jax.Array, jax.Array]) -> Any:
        w_XDF, start = (x.astype(jnp.float32) for x in both)
        moved_X = jnp.sum((w_XDF - start) ** 2, axis=(1, 2))
        norm_X = jnp.broadcast_to(jnp.sum(start**2, axis=(-2, -1)), moved_X.shape)
        rest_XDF = w_XDF - w_XDF[:1]
        exact = jax.lax.Precision.HIGHEST
        gram_XX = jnp.einsum("XDF,YDF->XY", rest_XDF, rest_XDF, precision=exact)
        return moved_X, norm_X, gram_XX

    return jax.lax.map(layer, (w_LXDF, start))


def as_scalars(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers of a metrics row, under router/, and the table of shares."""
    values = {
        "load_balance": np.mean(found["load_balance"]),
        "entropy": np.mean(found["entropy"]),
        "busiest": np.max(found["share"]),
        "idlest": np.min(found["share"]),
        "dead": len(found["dead"]),
        "from_start": np.mean(found["from_start"]),
        "apart": np.mean(found["apart"]),
    }
    if "shared_from_start" in found:
        values["shared_from_start"] = np.mean(found["shared_from_start"])
    named = {f"router/{name}": float(value) for name, value in values.items()}
    return named | {"router/share": found["share"]}
