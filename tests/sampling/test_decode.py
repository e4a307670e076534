"""Draws: their distribution, and what may not change them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.models.families import make_config
from tpmm_jax.sampling import SamplingConfig, generate_batches
from tpmm_jax.sampling.rules import draw, kept

CONFIG = make_config(
    "llama", vocab_size=29, width=10, mlp_width=13, num_layers=2, num_heads=3,
    num_kv_heads=1, head_dim=4, max_positions=50,
)  # fmt: skip
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [1, 2, 3], [20, 21]]
DRAWS = SamplingConfig(max_new_tokens=8)


@functools.cache
def params():
    return Decoder(CONFIG).init(jax.random.key(0))


def generate(prompts=PROMPTS, *, config=DRAWS, seed=3, mesh=None, eos_ids=(), **more):
    """Completions, each prompt's in its place."""
    decoder, weights = Decoder(CONFIG, mesh=mesh), params()
    if mesh is not None:
        where = jax.tree.map(lambda x: x.sharding, decoder.abstract_params())
        weights = jax.device_put(weights, where)
    found = {}
    for places, completions in generate_batches(
        decoder, weights, prompts,
        key=jax.random.key(seed), config=config, eos_ids=eos_ids, **more,
    ):  # fmt: skip
        assert not set(places) & set(found)
        found.update(zip(places, completions))
    return [found[place] for place in sorted(found)]


@functools.cache
def plain():
    return generate(num_samples=2)


def test_completions_have_their_length_and_differ():
    assert [len(samples) for samples in plain()] == [2] * 5
    assert all(len(ids) == 8 for samples in plain() for ids in samples)
    # Equal prompts are different draws, as are the samples of one prompt.
    assert plain()[0] != plain()[3] and plain()[0][0] != plain()[0][1]


def test_the_seed_decides():
    assert generate(num_samples=2) == plain()
    assert generate(num_samples=2, seed=4) != plain()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_changes_nothing(batch_size):
    assert generate(num_samples=2, batch_size=batch_size) == plain()


def test_padding_changes_nothing():
    # A longer neighbour pads everyone else to 42 instead of 32.
    longer = [*PROMPTS, list(range(1, 29)) + [1] * 10]
    assert generate(longer, num_samples=2)[:5] == plain()


def test_the_slot_in_the_batch_changes_nothing():
    order = [3, 1, 4, 0, 2]
    found = generate([PROMPTS[i] for i in order], numbers=order, num_samples=2)
    assert [found[order.index(i)] for i in range(5)] == plain()


def test_more_samples_extend_fewer():
    more = generate(num_samples=4)
    assert [samples[:2] for samples in more] == plain()


def test_a_start_skips_whole_batches():
    found = list(
        generate_batches(
            Decoder(CONFIG), params(), PROMPTS, key=jax.random.key(3), config=DRAWS,
            eos_ids=(), num_samples=2, batch_size=2, start=2,
        )
    )  # fmt: skip
    assert [places for places, _ in found] == [[2, 3], [4]]
    assert [c for _, completions in found for c in completions] == plain()[2:]


def test_the_mesh_changes_nothing():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert generate(num_samples=2, mesh=mesh) == plain()


def test_shorter_limits_give_prefixes():
    short = generate(config=SamplingConfig(max_new_tokens=3), num_samples=2)
    assert short == [[ids[:3] for ids in samples] for samples in plain()]


@jax.jit
def forward(weights, tokens):
    decoder = Decoder(CONFIG)
    return decoder.logits(
        weights, decoder.hidden(weights, from_mask(tokens, jnp.ones_like(tokens)))
    )


def full_logits(ids):
    """Without a cache; what follows on the right changes nothing before it."""
    tokens = np.zeros((1, 16), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(forward(params(), jnp.asarray(tokens)))[0]


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(max_new_tokens=8, temperature=0.0),
        SamplingConfig(max_new_tokens=8, top_k=1),
        SamplingConfig(max_new_tokens=8, top_p=1e-6),
        SamplingConfig(max_new_tokens=8, temperature=0.0, top_k=5, top_p=0.5),
    ],
    ids=["temperature 0", "top_k 1", "top_p 0", "temperature 0 with top_k"],
)
def test_greedy(config):
    for prompt, samples in zip(PROMPTS, generate(config=config, num_samples=2)):
        assert samples[0] == samples[1]
        logits = full_logits(prompt + samples[0])
        start = len(prompt) - 1
        assert logits[start : start + 8].argmax(-1).tolist() == samples[0]


def test_eos_ends_a_completion_and_is_kept():
    whole = plain()
    eos = (whole[0][0][2], whole[2][1][4])
    stopped = generate(eos_ids=eos, num_samples=2)
    ends = 0
    for samples, wanted in zip(stopped, whole):
        for ids, full in zip(samples, wanted):
            hits = [i for i, token in enumerate(full) if token in eos]
            # What comes before the first EOS id is the same draw as without EOS.
            assert ids == full[: hits[0] + 1 if hits else None]
            ends += bool(hits)
    assert ends >= 2
    assert {ids[-1] for samples in stopped for ids in samples if len(ids) < 8} <= {*eos}


def test_pad_id_equal_to_eos_id_loses_nothing():
    eos = (plain()[0][0][2],)
    other = generate(eos_ids=eos, num_samples=2, pad_id=0)
    assert generate(eos_ids=eos, num_samples=2, pad_id=eos[0]) == other


@pytest.mark.parametrize("prompts, wanted", [
    ([[1], []], "prompt 1 has 0 tokens"),
    ([[1] * 43], "prompt 0 has 43 tokens; wanted 1 to 42"),
])  # fmt: skip
def test_prompts_that_do_not_fit_are_refused(prompts, wanted):
    with pytest.raises(BadInput, match=wanted):
        generate(prompts)


def test_the_longest_prompt_fits():
    (samples,) = generate([[3] * 42])
    assert len(samples[0]) == 8


def numpy_kept(logits, config):
    """The smallest set of the likeliest tokens that reaches top_p, of the top k."""
    keep = np.zeros(logits.shape, bool)
    for row, out in zip(logits.astype(np.float64), keep):
        order = np.argsort(-row, kind="stable")[: config.top_k or None]
        probs = np.exp(row[order] - row[order].max())
        total = np.cumsum(probs / probs.sum())
        count = int(np.searchsorted(total, config.top_p)) + 1
        out[order[: min(count, len(order))]] = True
    return keep


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("top_k", [0, 1, 5, 29, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
def test_kept_tokens_in_numpy(top_k, top_p, equals):
    """Also of logits that are equal: the first of them are kept."""
    config = SamplingConfig(top_k=top_k, top_p=top_p)
    logits = np.random.default_rng(1).normal(0, 2, (17, 29)).astype(np.float32)
    if equals:
        logits = np.round(logits)
    found = np.asarray(kept(jnp.asarray(logits), config))
    np.testing.assert_array_equal(found, numpy_kept(logits, config))


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=2.0, top_k=4),
        SamplingConfig(top_p=0.7),
        SamplingConfig(temperature=1.3, top_k=6, top_p=0.8),
    ],
    ids=["plain", "cold", "top_k", "top_p", "all"],
)
def test_draws_have_their_distribution(config):
    """Chi-square of 20,000 draws under a fixed seed."""
    count = 20_000
    logits = np.random.default_rng(2).normal(0, 1.5, 11).astype(np.float32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(9), i))(
        jnp.arange(count)
    )
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, 11))
    found = jax.jit(lambda x, k: draw(x, k, config))(rows, keys)
    scaled = logits.astype(np.float64) / config.temperature
    keep = numpy_kept(scaled[None], config)[0]
    probs = np.where(keep, np.exp(scaled - scaled.max()), 0)
    probs /= probs.sum()
    seen = np.bincount(np.asarray(found), minlength=11)
    assert not seen[~keep].any()
    wanted = count * probs[keep]
    chi_square = float((((seen[keep] - wanted) ** 2) / wanted).sum())
    # The 99.9 % quantiles of chi-square with 1 to 10 degrees of freedom.
    bounds = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59]
    assert chi_square < bounds[keep.sum() - 2]


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_new_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")),
        ("temperature", float("inf")), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(BadInput, match=f"rollout.{field}"):
        SamplingConfig(**{field: value}).validate("rollout.{}".format)
    SamplingConfig().validate()
