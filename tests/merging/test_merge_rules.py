"""The rules that choose a reference, and fusion weights that are learned."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.losses import pair_log_probs
from tpmm_jax.merging import (
    RULES,
    Deltas,
    HeldOut,
    Margins,
    MergeContext,
    ReferenceConfig,
    choose,
    group_names,
    one_hot_index,
)
from tpmm_jax.merging.config import MAX_EVALUATIONS
from tpmm_jax.merging.exact import Problem, fit_exact
from tpmm_jax.merging.learned import (
    _fitted,
    _roomy,
    gradient_fn,
    learn,
    logits_gradient,
    softmax,
    start_logits,
)
from tpmm_jax.merging.scale import objective
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config


def weights(rule, K, **changes):
    config = ReferenceConfig(rule=rule, **changes)
    return choose(MergeContext(config, K, ["model"]))


@pytest.mark.parametrize("K", [1, 2, 5])
def test_closed_forms(K):
    np.testing.assert_array_equal(weights("sft", K), np.eye(K)[:1])
    np.testing.assert_array_equal(weights("previous", K), np.eye(K)[-1:])
    np.testing.assert_array_equal(weights("trust_region", K), np.eye(K)[-1:])
    np.testing.assert_allclose(weights("uniform", K), np.full((1, K), 1 / K))


@pytest.mark.parametrize("mu", [0.5, 0.1, 1.0])
@pytest.mark.parametrize("K", [2, 3, 7])
def test_ema_is_its_recursion(mu, K):
    """theta_ema <- (1 - mu) theta_ema + mu theta_t, from theta_0 on."""
    thetas = np.random.default_rng(0).normal(size=(K, 11))
    average = thetas[0]
    for theta in thetas[1:]:
        average = (1 - mu) * average + mu * theta
    found = weights("ema", K, ema_mu=mu)
    np.testing.assert_allclose(found @ thetas, average[None], rtol=1e-12)
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-12)
    assert mu < 1 or one_hot_index(found) == K - 1


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_an_anchor_share_is_theta_0s_weight(share):
    found = weights("ema", 4, anchor_share=share)
    plain = weights("ema", 4)
    np.testing.assert_allclose(found[0, 0], share)
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-12)
    ratio = found[0, 1:] / plain[0, 1:]
    np.testing.assert_allclose(ratio, np.full(3, ratio[0]))
    np.testing.assert_array_equal(weights("previous", 3, anchor_share=0.0), [[0, 0, 1]])
    np.testing.assert_array_equal(weights("previous", 1, anchor_share=0.3), [[1.0]])


@pytest.mark.parametrize("rule", RULES)
def test_one_checkpoint_needs_no_rule(rule):
    np.testing.assert_array_equal(weights(rule, 1), [[1.0]])


class Stub:
    """A trajectory of numbers; the held-out loss is a function of their mean."""

    def __init__(self, values, loss):
        self.values, self.loss, self.asked = np.asarray(values), loss, 0

    def merge(self, weights_GK):
        self.asked += 1
        return {"theta": float((weights_GK @ self.values)[0])}


def context(rule, values, loss):
    stub = Stub(values, lambda params: loss(params["theta"]))
    made = MergeContext(ReferenceConfig(rule=rule), len(values), ["model"])
    made.deltas, made.held_out = (lambda: stub), stub
    return made


def test_best_is_the_lowest_held_out_loss():
    made = context("best", [0.0, 3.0, 5.0, 4.2], lambda x: (x - 4) ** 2)
    np.testing.assert_array_equal(choose(made), [[0, 0, 0, 1]])
    np.testing.assert_allclose(made.report["held_out_losses"], [16, 1, 1, 0.04])


def test_of_equal_losses_the_earlier_checkpoint_is_best():
    made = context("best", [1.0, 3.0, 1.0], lambda x: (x - 1) ** 2)
    np.testing.assert_array_equal(choose(made), [[1, 0, 0]])


def test_greedy_soup_keeps_what_lowers_the_mean():
    # Best first: 4.2; with 3.0 the mean is 3.6, worse; with 3.9 it is 4.05, better;
    # with 0 or 9 it is worse again.
    values = [0.0, 3.0, 4.2, 9.0, 3.75]
    made = context("greedy_soup", values, lambda x: (x - 4) ** 2)
    np.testing.assert_array_equal(choose(made), [[0, 0, 0.5, 0, 0.5]])
    assert made.report["ingredients"] == [2, 4]


def test_greedy_soup_of_one_is_one_hot():
    made = context("greedy_soup", [4.0, 0.0, 9.0], lambda x: (x - 4) ** 2)
    assert one_hot_index(choose(made)) == 0


def test_greedy_soup_of_all_is_uniform():
    made = context("greedy_soup", [3.5, 4.2, 4.6], lambda x: (x - 4) ** 2)
    np.testing.assert_allclose(choose(made), np.full((1, 3), 1 / 3))


@pytest.mark.parametrize("shift", [-2.0, 0.0, 0.5, 3.0])
def test_the_calibrated_objective_is_the_grids_minimum(shift):
    margins = np.random.default_rng(1).normal(shift, 1.5, 41)
    grid = np.concatenate([[0], np.geomspace(1e-3, 1e4, 5001)])
    fine = np.mean(np.logaddexp(0, -grid[:, None] * margins), axis=1)
    found = objective(margins, ReferenceConfig())
    # The grid's steps are 0.3 %, so its minimum is within 1e-5 of the true one.
    assert fine.min() - 1e-5 <= found <= fine.min() + 1e-12


def test_the_objective_of_margins_that_say_nothing_is_log_2():
    for margins in (np.zeros(5), np.asarray([-1.0, -2.0]), np.asarray([1.0, -1.0])):
        np.testing.assert_allclose(
            objective(margins, ReferenceConfig()), np.log(2), rtol=1e-12
        )


def test_separable_margins_have_no_loss():
    assert 0 <= objective(np.asarray([0.1, 2.0]), ReferenceConfig()) < 1e-12


def test_the_fixed_objective_uses_beta():
    margins = np.asarray([1.0, -2.0, 30.0])
    found = objective(margins, ReferenceConfig(objective="fixed", beta=0.3))
    np.testing.assert_allclose(found, np.log1p(np.exp(-0.3 * margins)).mean())


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_logits_gradient_by_differences(groups, kl_weight):
    rng = np.random.default_rng(0)
    logits, slope = rng.normal(size=(2, groups, 5))

    def loss(logits):
        w = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        kl = (w * np.log(w * 5)).sum(-1).mean()
        return (slope * w).sum() + kl_weight * kl, kl_weight * kl

    found, kl = logits_gradient(logits, slope, kl_weight)
    np.testing.assert_allclose(kl, loss(logits)[1], rtol=1e-12)
    for g, k in np.ndindex(groups, 5):
        step = np.zeros((groups, 5))
        step[g, k] = 1e-6
        wanted = (loss(logits + step)[0] - loss(logits - step)[0]) / 2e-6
        np.testing.assert_allclose(found[g, k], wanted, rtol=1e-6, atol=1e-9)


def test_extreme_logits_stay_finite():
    found, kl = logits_gradient(np.asarray([[1e4, 0.0, -1e4]]), np.ones((1, 3)), 1.0)
    assert np.isfinite(found).all() and np.isfinite(kl)
    np.testing.assert_array_equal(softmax(np.asarray([[1e4, -1e4]])), [[1, 0]])


def test_start_logits():
    carried = np.asarray([[0.0, 3.0]], np.float32)
    zeros = ReferenceConfig()
    np.testing.assert_array_equal(start_logits(zeros, 1, 3, carried), np.zeros((1, 3)))
    keep = ReferenceConfig(start="carried")
    np.testing.assert_array_equal(start_logits(keep, 1, 3, carried), [[0, 3, 1.5]])
    np.testing.assert_array_equal(start_logits(keep, 1, 2, None), np.zeros((1, 2)))


CONFIG = make_config(
    "llama", vocab_size=17, width=6, mlp_width=7, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=4, max_positions=32,
)  # fmt: skip
DECODER = Decoder(CONFIG, chunk_bytes=1000)
K = 3


@functools.cache
def trajectory():
    """theta_0 and two others 0.3 away, in directions of their own."""
    models = [jax.device_get(DECODER.init(jax.random.key(0)))]
    for k in range(1, K):
        other = jax.device_get(DECODER.init(jax.random.key(k)))
        models.append(jax.tree.map(lambda x, y: x + 0.3 * y, models[0], other))
    return [jax.tree.map(jnp.asarray, model) for model in models]


@functools.cache
def held_out_table(M=11, T=8):
    rng = np.random.default_rng(3)
    mask = (np.arange(T) < rng.integers(4, T + 1, (M, 2, 1))).astype(np.int32)
    table = {
        "tokens_BNT": rng.integers(0, 17, (M, 2, T)).astype(np.int32),
        "mask_BNT": mask,
        "completion_mask_BNT": (mask * (np.arange(T) >= 2)).astype(np.int32),
        "weight_B": np.ones(M, np.float32),
    }
    run = jax.jit(lambda p, b: pair_log_probs(DECODER, p, b))
    batch = jax.tree.map(jnp.asarray, table)
    anchor, wish = (np.asarray(run(trajectory()[k], batch)) for k in (0, 2))
    # Checkpoint 2 is what the labels prefer, but for every fifth pair.
    better = (wish - anchor)[:, 0] >= (wish - anchor)[:, 1]
    better[::5] ^= True
    for name in ("tokens_BNT", "mask_BNT", "completion_mask_BNT"):
        turned = table[name][:, ::-1]
        table[name] = np.where(better[:, None, None], table[name], turned)
    table["reference_BN"] = np.where(better[:, None], anchor, anchor[:, ::-1])
    return table


def held_out(**changes):
    config = ReferenceConfig(
        **{"rule": "learned", "fit": "adam", "steps": 12, "batch_size": 64, **changes}
    )
    return HeldOut(DECODER, config, held_out_table(), 4, 7)


def open_deltas(tmp_path, granularity="model"):
    names = group_names(trajectory()[0], granularity)
    return Deltas(tmp_path / "deltas", trajectory().__getitem__, K, names)


def test_the_anchor_has_no_margin():
    np.testing.assert_allclose(
        held_out().margins(trajectory()[0]), np.zeros(11), atol=1e-5
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_margins_are_those_of_whole_batches(normalized):
    table = jax.tree.map(jnp.asarray, held_out_table())
    logps = jax.jit(lambda p: pair_log_probs(DECODER, p, table))(trajectory()[1])
    ratio = np.asarray(logps) - table["reference_BN"]
    if normalized:
        ratio = ratio / np.asarray(table["completion_mask_BNT"]).sum(-1)
    found = held_out(length_normalized=normalized).margins(trajectory()[1])
    np.testing.assert_allclose(found, ratio[:, 0] - ratio[:, 1], atol=2e-5)


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_the_streamed_gradient_is_that_through_a_stacked_tree(tmp_path, granularity):
    """To a relative 1e-6, dL/dw and, through an exact softmax, dL/da.

    The stacked tree holds theta_0 and K - 1 deltas, as on disk. jax.grad goes as far
    as the weights; the softmax's Jacobian is NumPy's, in float64: in float32 it
    cancels, and is then off by 2e-6 itself.
    """
    with open_deltas(tmp_path, granularity) as deltas:
        groups = len(deltas.names)
        logits = np.random.default_rng(4).normal(0, 1, (groups, K)).astype(np.float32)
        batch = jax.tree.map(jnp.asarray, held_out_table())
        run = gradient_fn(DECODER, False, 1)
        g, d_scale, loss = run(
            deltas.merge(softmax(logits)), jnp.float32(np.log(0.3)), batch
        )
        slope = deltas.weight_gradient(g)
        streamed, _ = logits_gradient(logits, slope, 0.0)
        stacked = {
            path: jnp.stack([deltas.leaf(k, path) for k in range(K)])
            for path in deltas.shapes
        }
        names = deltas.names

    def theta(weights):
        tree = {}
        for path, leaf in stacked.items():
            if granularity == "model":
                w = weights[0]
            elif path[0] == "layers":
                w = weights[: CONFIG.num_layers]
            else:
                w = weights[names.index(path[0])]
            # Weights sum to 1: theta_0 + sum_k w_k delta_k.
            value = leaf[0]
            for k in range(1, K):
                wk = w[..., k]
                shape = wk.shape + (1,) * (value.ndim - wk.ndim)
                value = value + wk.reshape(shape) * leaf[k]
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = value
        return tree

    def whole(weights, log_scale):
        logps = pair_log_probs(DECODER, theta(weights), batch)
        ratio = logps - batch["reference_BN"]
        margin = ratio[:, 0] - ratio[:, 1]
        return jnp.mean(-jax.nn.log_sigmoid(jnp.exp(log_scale) * margin))

    w = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(-1, keepdims=True)
    wanted_loss, (dw, wanted_scale) = jax.jit(
        jax.value_and_grad(whole, argnums=(0, 1))
    )(jnp.asarray(w, jnp.float32), jnp.float32(np.log(0.3)))
    dw = np.asarray(dw, np.float64)
    assert np.linalg.norm(slope - dw) <= 1e-6 * np.linalg.norm(dw)
    wanted = w * (dw - (w * dw).sum(-1, keepdims=True))
    assert np.linalg.norm(streamed - wanted) <= 1e-6 * np.linalg.norm(wanted)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    np.testing.assert_allclose(d_scale, wanted_scale, rtol=2e-6)


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_learning_lowers_the_held_out_loss(tmp_path, granularity):
    held, rows = held_out(granularity=granularity), []
    with open_deltas(tmp_path, granularity) as deltas:
        logits, scale = learn(
            deltas, held, on_step=lambda progress, row: rows.append(row)
        )
        uniform = held.loss(deltas.merge(np.full((len(deltas.names), K), 1 / K)))
        learned = held.loss(deltas.merge(softmax(logits)))
    assert logits.shape == (len(group_names(trajectory()[0], granularity)), K)
    assert logits.dtype == np.float32 and scale > 0
    assert len(rows) == 12 and rows[-1]["loss"] < rows[0]["loss"]
    assert learned < uniform


def test_the_first_step_is_adams(tmp_path):
    """|da| = learning rate for every logit; s likewise, unless it is fixed."""
    for kind in ("calibrated", "fixed"):
        held = held_out(steps=1, objective=kind, beta=0.2)
        with open_deltas(tmp_path) as deltas:
            logits, scale = learn(deltas, held)
        np.testing.assert_allclose(np.abs(logits), 0.1, rtol=1e-3)
        moved = abs(np.log(scale / 0.2))
        np.testing.assert_allclose(moved, 0.1 if kind == "calibrated" else 0, atol=1e-6)


def test_adam_compiles_nothing_for_one_more_checkpoint_and_moves_alike():
    """Shapes grow at powers of two; the numbers are those of arrays without room."""
    rng, adam = np.random.default_rng(0), optax.adam(0.1)
    for count in (1, 2, 3, 5, 8):
        plain = {"logits": np.zeros((2, count), np.float32), "s": np.float32(1)}
        roomy, moments, others = plain, adam.init(plain), adam.init(plain)
        assert _roomy(plain)["logits"].shape == (2, {3: 4, 5: 8}.get(count, count))
        for _ in range(3):
            drawn = rng.normal(size=(2, count)).astype(np.float32)
            grads = {"logits": drawn, "s": np.float32(drawn[0, 0])}
            updates, moments = adam.update(grads, moments)
            plain = optax.apply_updates(plain, updates)
            updates, others = adam.update(_roomy(grads), _roomy(others))
            roomy = optax.apply_updates(_roomy(roomy), updates)
            roomy, others = _fitted((roomy, others), count)
        jax.tree.map(np.testing.assert_array_equal, (plain, moments), (roomy, others))


def test_learning_continues_bit_for_bit_from_json(tmp_path):
    held, saved = held_out(batch_size=5), []
    with open_deltas(tmp_path, "layer") as deltas:
        whole = learn(
            deltas, held, on_step=lambda progress, _: saved.append(json.dumps(progress))
        )
        for at in (0, 6, 11):
            rows = []
            found = learn(
                deltas,
                held,
                progress=json.loads(saved[at]),
                on_step=lambda progress, _, rows=rows: rows.append(
                    json.dumps(progress)
                ),
            )
            np.testing.assert_array_equal(found[0], whole[0])
            assert found[1] == whole[1] and rows == saved[at + 1 :]


def test_a_strong_prior_keeps_the_weights_uniform(tmp_path):
    held = held_out(kl_weight=1e4, steps=30, learning_rate=0.01)
    with open_deltas(tmp_path) as deltas:
        logits, _ = learn(deltas, held)
    np.testing.assert_allclose(softmax(logits), np.full((1, K), 1 / K), atol=0.02)


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_exact_goes_on_from_margins(tmp_path, granularity):
    """Lower than it began, w_0 as set; resumed after any evaluation, the same."""
    held, saved = held_out(fit="exact", granularity=granularity), []
    share_K = np.asarray([0.9, 0.1])
    with open_deltas(tmp_path, granularity) as deltas:
        problem = Problem(deltas, held, [1, 2], share_K, 0.25, 0.5)
        start_GK = problem.weights(problem.start())
        found_GK, report = fit_exact(
            problem,
            progress=None,
            on_step=lambda progress, row: saved.append(json.dumps(progress)),
        )
        before, after = (held.loss(deltas.merge(w)) for w in (start_GK, found_GK))
        for at in (0, len(saved) - 2):
            rest = []
            again_GK, _ = fit_exact(
                problem,
                progress=json.loads(saved[at]),
                on_step=lambda progress, row, rest=rest: rest.append(
                    json.dumps(progress)
                ),
            )
            np.testing.assert_array_equal(again_GK, found_GK)
            assert rest == saved[at + 1 :]
    np.testing.assert_allclose(start_GK[0], [0.25, 0.675, 0.075])
    np.testing.assert_array_equal(found_GK[:, 0], np.full(len(deltas.names), 0.25))
    np.testing.assert_allclose(found_GK.sum(axis=1), 1.0, rtol=1e-12)
    assert after < before and report["exact_loss"] < report["start_loss"]
    assert report["evaluations"] == len(saved) <= MAX_EVALUATIONS
    assert report["start_loss"] >= before * (1 - 1e-6)  # its scale is not the best
    # Layers may differ, but not without a reason.
    assert (np.ptp(found_GK[:, 1]) > 0) == (granularity == "layer")


def test_the_exact_gradient_by_differences(tmp_path):
    held = held_out(fit="exact", granularity="layer")
    with open_deltas(tmp_path, "layer") as deltas:
        problem = Problem(deltas, held, [1, 2], np.asarray([0.6, 0.4]), 0.25, 0.5)
        x = problem.start()
        x += np.random.default_rng(0).normal(0, 0.3, len(x))
        _, gradient = problem.evaluate(x)
        for i in range(len(x)):
            step = np.zeros(len(x))
            step[i] = 0.01
            high, low = (problem.evaluate(x + s * step)[0] for s in (1, -1))
            wanted = (high - low) / 0.02
            np.testing.assert_allclose(gradient[i], wanted, rtol=0.02, atol=2e-5)


def test_a_checkpoint_that_was_left_out_stays_out(tmp_path):
    with open_deltas(tmp_path) as deltas:
        problem = Problem(deltas, held_out(fit="exact"), [2], np.ones(1), 0.5, 0.5)
        found_GK, _ = fit_exact(problem, progress=None, on_step=lambda *_: None)
    np.testing.assert_array_equal(found_GK, [[0.5, 0.0, 0.5]])


def test_exact_is_only_begun_where_margins_tell_checkpoints_apart(tmp_path):
    rng = np.random.default_rng(0)
    D_PK = rng.normal(size=(120, K - 1))
    config = held_out(fit="exact", anchor_share=0.25).config
    for learned, sign_P in ((False, rng.choice([-1, 1], 120)), (True, D_PK[:, 1])):
        shown = D_PK * np.sign(sign_P)[:, None]
        with open_deltas(tmp_path) as deltas:
            made = MergeContext(config, K, deltas.names)
            made.margins = Margins(shown, np.arange(120).tolist(), np.zeros(K - 1))
            made.deltas, made.held_out = (lambda d=deltas: d), held_out(fit="exact")
            found_GK = choose(made)
        assert made.report["learned"] == learned
        assert ("exact_loss" in made.report) == learned
        np.testing.assert_allclose(found_GK[0, 0], 0.25)
        if not learned:
            np.testing.assert_allclose(found_GK, [[0.25, 0.375, 0.375]])


def test_learned_is_a_rule(tmp_path):
    config = held_out().config
    with open_deltas(tmp_path) as deltas:
        made = MergeContext(config, K, deltas.names)
        made.deltas, made.held_out = (lambda: deltas), held_out()
        found = choose(made)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(
        softmax(np.asarray(made.report["logits"], np.float32)), found
    )
    assert made.report["scale"] > 0


@pytest.mark.parametrize(
    "field, value",
    [
        ("rule", "unifrom"), ("ema_mu", 0.0), ("ema_mu", 1.5),
        ("trust_region_alpha", 0.0), ("trust_region_tau", 0), ("beta", 0.0),
        ("anchor_share", 1.0), ("anchor_share", -0.1), ("holdout_window", 0),
        ("kl_weight", -1.0), ("learning_rate", 0.0), ("steps", 0), ("batch_size", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(BadInput, match=f"reference.{field}"):
        ReferenceConfig(**{field: value}).validate(tuple(RULES))
    ReferenceConfig().validate(tuple(RULES))


@pytest.mark.parametrize("fit, field, value, reads", [
    ("margins", "granularity", "layer", "exact"),
    ("margins", "beta", 0.3, "exact"),
    ("margins", "steps", 7, "adam"),
    ("exact", "kl_weight", 0.1, "adam"),
])  # fmt: skip
def test_what_a_fit_does_not_read_is_refused(fit, field, value, reads):
    config = ReferenceConfig(rule="learned", fit=fit, **{field: value})
    with pytest.raises(BadInput, match=f"fit={fit};.*or use reference.fit=.*{reads}"):
        config.validate(tuple(RULES))
    adam = ReferenceConfig(
        rule="learned", fit=reads, objective="fixed", **{field: value}
    )
    adam.validate(tuple(RULES))


@pytest.mark.parametrize("rule", ["sft", "trust_region"])
def test_an_anchor_share_needs_weights(rule):
    with pytest.raises(BadInput, match=r"reference\.anchor_share is 0\.5, but rule"):
        ReferenceConfig(rule=rule, anchor_share=0.5).validate(tuple(RULES))


def test_which_rules_look_at_held_out_pairs():
    using = {rule for rule in RULES if ReferenceConfig(rule=rule).uses_holdout}
    assert using == {"learned", "best", "greedy_soup"}
