"""What is said of a mixture's routers and experts, against plain NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.models.families import make_config
from tpmm_jax.reward_runs.routers import Routing, Start, as_scalars, describe
from tpmm_jax.scoring import row_rewards
from tpmm_jax.weights.source import Model

SIZES = {
    "vocab_size": 40, "width": 8, "mlp_width": 12, "num_layers": 3, "num_heads": 2,
    "num_kv_heads": 1,
}  # fmt: skip
ROWS = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10], [4, 5, 6, 7, 8]]
MATRICES = ("gate", "up", "down")


@pytest.fixture(scope="module")
def models():
    """(the dense start, a mixture whose experts have moved, its layers 1 and 2)."""
    decoder = Decoder(make_config("llama", **SIZES, output="reward"), remat=False)
    dense = Model(decoder, decoder.init(jax.random.key(0)))
    moved = tpmm.upcycle(dense, experts=3, layers="1-2", noise=0.5)
    mlp = jax.tree.map(lambda x: 1.25 * x, moved.params["layers"]["mlp"])
    params = moved.params | {"layers": moved.params["layers"] | {"mlp": mlp}}
    return dense, dataclasses.replace(moved, params=params)


@pytest.fixture(scope="module")
def found(models):
    """(sums over ROWS, tables)."""
    dense, mixture = models
    routing = Routing()
    row_rewards(
        mixture.decoder, mixture.params, ROWS, batch_size=2, routing=routing.add
    )
    mlp = {name: np.asarray(dense.params["layers"]["mlp"][name])[1:]
           for name in MATRICES}  # fmt: skip
    start = Start(mlp, mlp, dense=True)
    return routing.sums, describe(mixture.config, mixture.params, routing, start)


def test_sums_are_over_real_tokens_and_equal_rows_count_each(models, found):
    _, mixture = models
    tokens_BT, mask_BT = np.zeros((2, 4, 7), np.int32)
    for b, ids in enumerate(ROWS):
        tokens_BT[b, : len(ids)], mask_BT[b, : len(ids)] = ids, 1
    rewards_and_aux = jax.jit(mixture.decoder.rewards_and_aux)
    sequences = from_mask(*map(jax.numpy.asarray, (tokens_BT, mask_BT)))
    _, aux = rewards_and_aux(mixture.params, sequences)
    sums, tables = found
    for name in ("share", "probability"):
        wanted_LX = np.asarray(aux[f"{name}_BX"]).sum(axis=1)
        np.testing.assert_allclose(sums[f"{name}_LX"], wanted_LX, atol=1e-5)
        np.testing.assert_allclose(tables[name], wanted_LX[1:] / 15, atol=1e-6)
    assert tables["tokens"] == sum(map(len, ROWS)) == 15
    assert tables["layers"] == [1, 2]
    np.testing.assert_allclose(np.sum(tables["share"], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        tables["load_balance"],
        3 * np.sum(np.multiply(tables["share"], tables["probability"]), axis=1),
    )


def test_distances_are_those_of_the_three_matrices_together(models, found):
    dense, mixture = models
    tables = found[1]

    def flat(weights, *place):
        return np.concatenate([np.asarray(weights[n])[place].ravel() for n in MATRICES])

    for row, layer in enumerate((1, 2)):
        start = flat(dense.params["layers"]["mlp"], layer)
        norm = np.linalg.norm(start)
        experts = [flat(mixture.params["experts"], row, x) for x in range(3)]
        moved = [np.linalg.norm(w - start) / norm for w in experts]
        np.testing.assert_allclose(tables["from_start"][row], moved, rtol=1e-5)
        pairs = [
            np.linalg.norm(experts[a] - experts[b]) / norm
            for a, b in ((0, 1), (0, 2), (1, 2))
        ]
        assert tables["apart"][row] == pytest.approx(np.mean(pairs), rel=1e-5)
        assert tables["closest"][row] == pytest.approx(min(pairs), rel=1e-5)
        assert tables["shared_from_start"][row] == pytest.approx(0.25, rel=1e-5)


def test_a_dead_expert_is_named_and_copies_are_not_apart(models):
    dense, _ = models
    copies = tpmm.upcycle(dense, experts=3)
    mlp = {name: np.asarray(dense.params["layers"]["mlp"][name]) for name in MATRICES}
    share_LX = np.array([[10.0, 8, 2], [9.8, 9.8, 0.4], [20, 0, 0]])
    sums = {
        "share_LX": share_LX, "probability_LX": share_LX, "entropy_L": np.full(3, 5.0),
    }  # fmt: skip
    start = Start(mlp, mlp, dense=True)
    tables = describe(copies.config, copies.params, Routing(sums), start)
    assert tables["dead"] == [[1, 2], [2, 1], [2, 2]]
    assert np.all(np.asarray(tables["from_start"]) == 0) and tables["apart"] == [0] * 3
    row = as_scalars(tables)
    assert row["router/dead"] == 3 and row["router/entropy"] == 0.25
    assert row["router/busiest"] == 1 and row["router/idlest"] == 0
