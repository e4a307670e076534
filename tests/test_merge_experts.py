"""Experts merged back: the formula, the three rules, what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reward_run_folder import tiny_run

import tpmm_jax as tpmm
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import (
    ExpertMergeConfig,
    ExpertsContext,
    choose_experts,
    dense_config,
    dense_decoder,
    expert_pairs,
    merge_params,
    pair_margins,
)
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder, ExpertsConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.weights.source import Model

SIZES = {
    "vocab_size": 31, "width": 16, "mlp_width": 24, "num_layers": 3, "num_heads": 2,
    "num_kv_heads": 1, "max_positions": 64, "bos_id": 2, "eos_ids": (1,), "pad_id": 0,
}  # fmt: skip
MATRICES = ("gate", "up", "down")


@pytest.fixture(scope="module")
def dense():
    """A random model whose rewards are far enough apart to learn from."""
    config = make_config("llama", **SIZES, output="reward")
    decoder = Decoder(config, remat=False)
    params = decoder.init(jax.random.key(0))
    params["score"] = 8.0 * params["score"]
    return Model(decoder, params, tiny_run.tokenizer(), {"source": "dense"})


@pytest.fixture(scope="module")
def texts():
    rng, rows = np.random.default_rng(1), []
    for number in range(10):
        words = [" ".join(rng.choice(tiny_run.WORDS, size=3)) for _ in range(2)]
        rows.append({"prompt": f"w{number} ", "chosen": words[0], "rejected": words[1]})
    return rows


def same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("rule", "shared", "layers"),
    [("uniform", 0.3, "1-2"), ("uniform", 0.9, "all"), ("gating", 0.5, "all")],
)
def test_untouched_experts_give_the_dense_model_back(
    dense, texts, rule, shared, layers
):
    moe = tpmm.upcycle(dense, experts=4, shared=shared, layers=layers)
    merged = tpmm.merge_experts(moe, rule, texts)
    same(merged.params, dense.params)
    assert merged.decoder == dense.decoder
    assert np.shape(merged.origin["weights"]) == (3 if layers == "all" else 2, 4)
    assert merged.origin["rule"] == rule
    assert merged.origin["mixture"]["experts"]["shared"] == shared


def test_untouched_experts_learn_nothing_and_the_start_is_kept(dense, texts):
    moe = tpmm.upcycle(dense, experts=4)
    with pytest.warns(UserWarning, match="no better than their start"):
        merged = tpmm.merge_experts(moe, "learned", texts, steps=2)
    same(merged.params, dense.params)
    assert merged.origin["kept"] == "start"
    assert merged.origin["weights"] == merged.origin["start"]
    loss = merged.origin["held_out_loss"]
    assert loss["learned"] == loss["start"]


@pytest.fixture(scope="module")
def noisy(dense):
    return tpmm.upcycle(dense, experts=4, shared=0.3, noise=1.0, layers="1-2")


def test_noisy_copies_err_by_the_mean_of_their_noise(dense, noisy):
    """Standard deviation (1 - s) noise std(W) / sqrt(X) a weight."""
    merged = tpmm.merge_experts(noisy)
    for name in MATRICES:
        w = np.asarray(dense.params["layers"]["mlp"][name])[1:]
        error = np.asarray(merged.params["layers"]["mlp"][name])[1:] - w
        stated = 0.7 * w.std(axis=(1, 2)) / 2
        np.testing.assert_allclose(error.std(axis=(1, 2)), stated, rtol=0.15)


@pytest.mark.parametrize("sizes", [None, {"expert": 4, "fsdp": 2}])
def test_the_merge_is_the_formula(noisy, sizes):
    """A layer without experts stays as it is, bit for bit; on a mesh likewise."""
    decoder, params = noisy.decoder, noisy.params
    if sizes is not None:
        decoder = dataclasses.replace(decoder, mesh=make_mesh(MeshConfig(**sizes)))
        where = jax.tree.map(lambda x: x.sharding, decoder.abstract_params())
        params = jax.device_put(params, where)
    m = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    merged = merge_params(decoder, params, m)
    assert merged.keys() == noisy.params.keys() - {"experts"}
    for name in MATRICES:
        shared = np.asarray(noisy.params["layers"]["mlp"][name], np.float64)
        routed = np.asarray(noisy.params["experts"][name], np.float64)
        found = np.asarray(merged["layers"]["mlp"][name])
        np.testing.assert_array_equal(found[0], shared[0])
        wanted = 0.3 * shared[1:] + 0.7 * np.einsum("LX,LXDF->LDF", m, routed)
        np.testing.assert_allclose(found[1:], wanted, atol=1e-6)


def token_pairs(count, seed=0):
    """Pairs of random ids, each of a prompt of its own, of several lengths."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        sides = [rng.integers(3, 31, rng.integers(2, 8)).tolist() for _ in range(2)]
        prompt = rng.integers(3, 31, 3).tolist()
        rows.append(PairRow([2, *prompt], *sides, group=f"p{number}"))
    return rows


def test_gating_is_the_mean_gate_probability_over_real_tokens(noisy):
    """A token counts once, whatever its row's padding, and filling rows not at all."""
    rows = token_pairs(10)
    tokens = [2 * 4 + len(r.chosen_ids) + len(r.rejected_ids) for r in rows]
    each = np.stack([gates(noisy, [row]) for row in rows])
    assert np.ptp(each, axis=0).max() > 1e-3
    found = gates(noisy, rows)
    np.testing.assert_allclose(found, np.average(each, 0, tokens), atol=1e-6)
    assert np.abs(found - each.mean(axis=0)).max() > 1e-5


def gates(model, rows):
    config = ExpertMergeConfig(rule="gating")
    pairs = expert_pairs(rows, config, 64, 0)
    return choose_experts(ExpertsContext(config, model.decoder, model.params, pairs))


@pytest.fixture(scope="module")
def made(dense):
    """A mixture with the labels' own model behind expert 2, and pairs it labelled."""
    moe = tpmm.upcycle(dense, experts=4, seed=3)
    routed = dict(moe.params["experts"])
    teacher = jax.tree.map(jnp.array, dense.params)
    for number, name in enumerate(MATRICES):
        w = dense.params["layers"]["mlp"][name]
        step = jax.random.normal(jax.random.key(number), (3, 4, *w.shape[1:]))
        step = 0.7 * jnp.std(w) * step
        teacher["layers"]["mlp"][name] = w + step[:, 2]
        routed[name] = routed[name] + step / 0.5
    moe = dataclasses.replace(moe, params=moe.params | {"experts": routed})
    config = ExpertMergeConfig(steps=60, learning_rate=0.2, batch_size=8, holdout=0.3)
    rows = token_pairs(120, seed=4)
    every = expert_pairs(rows, ExpertMergeConfig(rule="gating"), 64, 0)
    right = pair_margins(dense.decoder, teacher, every.table) > 0
    labelled = [
        row
        if good
        else dataclasses.replace(
            row, chosen_ids=row.rejected_ids, rejected_ids=row.chosen_ids
        )
        for row, good in zip(rows, right)
    ]
    return moe, config, expert_pairs(labelled, config, 64, 0)


def test_learned_weights_find_the_better_expert(made):
    moe, config, pairs = made
    assert (len(pairs.rows), len(pairs.held_rows)) == (84, 36)
    seen: list[float] = []
    context = ExpertsContext(config, moe.decoder, moe.params, pairs, step=seen.append)
    weights_LX = choose_experts(context)
    report = context.report
    assert report["kept"] == "learned" and len(seen) == 60
    assert report["held_out_loss"]["learned"] < report["held_out_loss"]["start"] - 0.05
    rise = weights_LX - np.asarray(report["start"])
    assert rise[:, 2].mean() > 0.2 and np.argmax(weights_LX.mean(axis=0)) == 2
    np.testing.assert_allclose(weights_LX.sum(axis=1), 1)
    again = choose_experts(ExpertsContext(config, moe.decoder, moe.params, pairs))
    np.testing.assert_array_equal(again, weights_LX)


def test_a_merged_model_is_an_ordinary_one(noisy, texts, tmp_path):
    """Saved, loaded and scored as any dense one, at its number of weights."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    tpmm.save(noisy, tmp_path / "moe")
    merged = tpmm.merge_experts(tmp_path / "moe", "gating", path)
    same(merged.params, tpmm.merge_experts(noisy, "gating", texts).params)
    dense = make_config("llama", **SIZES, output="reward")
    assert merged.config == dense
    assert merged.decoder.num_params == Decoder(dense).num_params
    assert merged.decoder.num_params < noisy.decoder.num_params
    tpmm.save(merged, tmp_path / "dense")
    text = (tmp_path / "dense/config.json").read_text()
    assert json.loads(text)["architectures"] == ["LlamaForSequenceClassification"]
    again = tpmm.load_reward(tmp_path / "dense")
    words = (["w1 w2"], [["w3", "w4 w5"]])
    np.testing.assert_array_equal(tpmm.score(again, *words), tpmm.score(merged, *words))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "mean"}, "rule is 'mean'; known rules: uniform, gating, learned"),
        ({"rule": "gating"}, 'rule "gating" needs pairs'),
        ({"rule": "learned", "steps": 0, "pairs": []}, "steps is 0"),
        ({"rule": "learned", "holdout": 1.0, "pairs": []}, "holdout is 1.0"),
        (
            {"rule": "gating", "pairs": [{"prompt": {1}}]},
            "wanted a file, or a list of dicts",
        ),
        ({"rule": "gating", "pairs": [{"prompt": "w1"}]}, r"pairs:1"),
        (
            {
                "rule": "learned",
                "pairs": [{"prompt": "w1 ", "chosen": "w2", "rejected": "w3"}],
            },
            "1 different prompts",
        ),
    ],
)
def test_what_a_rule_cannot_use_is_refused(noisy, changes, words):
    with pytest.raises(BadInput, match=words):
        tpmm.merge_experts(noisy, **changes)


def test_models_whose_experts_are_not_merged(dense):
    with pytest.raises(BadInput, match="dense is dense: it has no experts"):
        tpmm.merge_experts(dense)
    mixtral = dataclasses.replace(
        dense.config, experts=ExpertsConfig(count=4, top_k=2), output="tokens"
    )
    with pytest.raises(BadInput, match="it is a policy, whose experts are not merged"):
        dense_config(mixtral, "it")
    rewards = dataclasses.replace(mixtral, output="reward")
    with pytest.raises(BadInput, match="no shared expert: its experts did not begin"):
        dense_decoder(Decoder(rewards), "it")
