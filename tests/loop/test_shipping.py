"""The shipped policy: evaluated beside theta_t, recommended, and found by name."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import start

import tpmm_jax as tpmm
from tpmm_jax.commands import export
from tpmm_jax.commands._peft import mean_adapters
from tpmm_jax.config import Config, ModelSource
from tpmm_jax.data.records import PairRow, Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.loop.held_out import CachedPairs
from tpmm_jax.loop.shipping import held_out_prompts, rated_samples
from tpmm_jax.merging import ReferenceConfig, fit_listwise, listwise
from tpmm_jax.models import LoraConfig
from tpmm_jax.report.page import write_report
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.store import tree_digest

ITERATIONS = 2


def config(**changes: Any) -> Config:
    fields = {
        "iterations": ITERATIONS,
        "reference": ReferenceConfig(rule="uniform"),
        "ship": "auto",
        **changes,
    }
    return tiny_run.get_config(**fields)


def ship(workdir: pathlib.Path, t: int) -> dict[str, Any]:
    return json.loads((workdir / f"iterations/{t:03d}/ship.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("shipping") / "run"
    start(config(), workdir)
    return workdir


def mean_of(workdir: pathlib.Path) -> Any:
    several = [
        tpmm.load(f"{workdir}/trajectory@{k}").params for k in range(ITERATIONS + 1)
    ]
    return jax.tree.map(
        lambda *xs: np.mean(np.stack(xs, dtype=np.float64), 0), *several
    )


def test_the_mean_is_evaluated_on_the_same_prompts(run: pathlib.Path) -> None:
    rows = iteration_rows(run)
    assert not any(name.startswith("ship/") for name in rows[0])
    for row in rows[1:]:
        for name in ("reward/mean", "kl/theta_0", "length/mean", "win/theta_0"):
            assert np.isfinite(row[name]) and np.isfinite(row[f"ship/{name}"])
        assert 0 <= row["ship/win/policy"] <= 1
        assert "ship/win/previous" not in row
    folder = run / "iterations/002"
    mine, theirs = (
        [json.loads(line) for line in (folder / name).open()]
        for name in ("evaluation-ship.jsonl", "evaluation.jsonl")
    )
    assert [row["prompt"] for row in mine] == [row["prompt"] for row in theirs]
    assert mine != theirs


def test_auto_chooses_on_held_out_prompts(run: pathlib.Path) -> None:
    for t in (1, 2):
        found = ship(run, t)
        better = found["gain_of_mean"] > found["gain_error"]
        assert found["chosen"] == ("mean" if better else "last")
        last, mean = (
            [json.loads(line) for line in path.open()]
            for name in ("last", "mean")
            if (path := run / f"iterations/{t:03d}/evaluation-ship-{name}.jsonl")
        )
        rewards = [
            np.asarray([row["rewards"] for row in rows]) for rows in (last, mean)
        ]
        gain_B = (rewards[1] - rewards[0]).mean(axis=1)
        np.testing.assert_allclose(found["gain_of_mean"], gain_B.mean())
        np.testing.assert_allclose(
            found["gain_error"], gain_B.std(ddof=1) / np.sqrt(len(gain_B))
        )
        trained = {
            json.loads(line)["prompt"]
            for line in (run / f"iterations/{t:03d}/pairs.jsonl").open()
            if not json.loads(line)["held_out"]
        }
        assert not trained & {row["prompt"] for row in last}


def test_the_mean_is_found_by_name(run: pathlib.Path) -> None:
    mean = tpmm.load(f"{run}/policy@mean")
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-7),
        jax.device_get(mean.params),
        mean_of(run),
    )
    assert tree_digest(mean.params) == ship(run, ITERATIONS)["mean"]
    newest = tpmm.load(f"{run}/policy@last")
    assert newest.origin["source"].endswith("trajectory@2")
    first = tpmm.load(f"{run}/policy@mean..1")
    wanted = tpmm.load(f"{run}/trajectory@1").params
    zero = tpmm.load(f"{run}/trajectory@0").params
    jax.tree.map(
        lambda m, x, y: np.testing.assert_allclose(m, (x + y) / 2, rtol=0, atol=2e-7),
        *map(jax.device_get, (first.params, wanted, zero)),
    )
    with pytest.raises(BadInput, match="policies are policy@last, policy@mean"):
        tpmm.load(f"{run}/policy@best")


@pytest.mark.parametrize(
    "chosen", [pytest.param("last", marks=pytest.mark.slow), "mean"]
)
def test_a_workdir_means_what_it_ships(
    run: pathlib.Path, tmp_path: pathlib.Path, chosen: str
) -> None:
    from tpmm_jax.store.digests import read_listed_json, write_listed_json

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "iterations/002/ship.json"
    record = read_listed_json(path) | {"chosen": chosen}
    write_listed_json(path, record, replace=True)
    origin = tpmm.load(copy).origin["source"]
    assert origin.endswith("policy@mean..2" if chosen == "mean" else "trajectory@2")
    output = tmp_path / "exported"
    assert export.main([str(copy), "--output", str(output)]) == 0
    card = (output / "README.md").read_text()
    assert ("The mean of the policies 0 to 2, weights" in card) == (chosen == "mean")
    assert "| the mean of the policies 0 to 2 | value |" in card
    wanted = (
        mean_of(run) if chosen == "mean" else tpmm.load(f"{run}/policy@last").params
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-7),
        jax.device_get(tpmm.load(output).params),
        jax.device_get(wanted),
    )


def test_the_report_shows_the_mean(run: pathlib.Path) -> None:
    page = write_report([run]).read_text()
    assert "the mean of θ₀ to θₜ" in page


@pytest.mark.slow
def test_an_interrupted_evaluation_ends_the_same(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    from tpmm_jax.loop import shipping

    sample, calls = shipping._sample, []

    def crashing(*args: Any) -> Any:
        calls.append(args[4])
        if len(calls) == 3:
            raise Crash
        return sample(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shipping, "_sample", crashing)
        with pytest.raises(Crash):
            start(config(), tmp_path)
    assert calls == ["ship", "ship-mean", "ship-last"]
    start(config(), tmp_path)
    for path in run.glob("iterations/*/*"):
        again = tmp_path / path.relative_to(run)
        assert again.read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_an_interrupted_fit_ends_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prompts enough to fit on; of a scorer's later version, fewer."""
    from tpmm_jax.loop import shipping

    class Crash(BaseException):
        pass

    monkeypatch.setattr(listwise, "LEAST_PROMPTS", 8)
    many = dataclasses.replace(config().rollout, prompts_per_iteration=40)
    learned = config(
        ship="learned", rollout=many, pairing=PairingConfig(holdout_fraction=0.5)
    )
    start(learned, tmp_path / "whole")
    found = ship(tmp_path / "whole", 2)
    assert found["held_out_prompts"] >= 8 and found["gain_error"] > 0
    for name in ("fit_listwise", "_sample", "tree_digest"):
        crashed, calls = tmp_path / name, []
        call = getattr(shipping, name)

        def crashing(*args: Any, call: Any = call, calls: Any = calls) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise Crash
            return call(*args)

        with monkeypatch.context() as patch:
            patch.setattr(shipping, name, crashing)
            with pytest.raises(Crash):
                start(learned, crashed)
        start(learned, crashed)
        for path in (tmp_path / "whole").glob("iterations/*/*"):
            again = crashed / path.relative_to(tmp_path / "whole")
            assert again.read_bytes() == path.read_bytes(), (name, path.name)
    monkeypatch.setattr(shipping, "earlier_labels", lambda workdir: 1)
    start(learned, tmp_path / "later")
    fewer = ship(tmp_path / "later", 2)["held_out_prompts"]
    assert ship(tmp_path / "later", 1)["held_out_prompts"] == 0
    assert 0 < fewer <= found["held_out_prompts"]


@pytest.mark.slow
def test_of_lora_the_mean_is_that_of_products(tmp_path: pathlib.Path) -> None:
    """As weights, and as one adapter of all ranks side by side."""
    source = dataclasses.replace(
        config().model, lora=LoraConfig(rank=2, alpha=8.0, rslora=True)
    )
    assert isinstance(source, ModelSource)
    workdir = tmp_path / "run"
    start(config(model=source, ship="mean"), workdir)
    assert ship(workdir, ITERATIONS)["chosen"] == "mean"
    mean = jax.device_get(tpmm.load(workdir).params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-7),
        mean,
        mean_of(workdir),
    )
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    assert export.main([f"{workdir}/trajectory@0", "--output", str(base)]) == 0
    command = [str(workdir), "--output", str(adapter), "--peft"]
    assert export.main([*command, "--base-model", str(base)]) == 0
    written = json.loads((adapter / "adapter_config.json").read_text())
    assert written["r"] == 2 * ITERATIONS  # theta_0 has no product
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=5e-7),
        jax.device_get(tpmm.load(adapter).params),
        mean,
    )


SHARES = [0.25, 0.0, 0.75]


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run whose last fit finds SHARES; the first has too few prompts."""
    from tpmm_jax.loop import shipping

    fit = shipping.fit_listwise

    def found(samples: Any) -> Any:
        known = fit(samples)
        if samples.logp_PRK.shape[-1] < len(SHARES):
            return known
        return dataclasses.replace(known, weights_K=np.array(SHARES), learned=True)

    workdir = tmp_path_factory.mktemp("weighted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "fit_listwise", found)
        said = start(config(ship="learned"), workdir)
    assert "too few to weight policies with; the plain mean is shipped" in said
    return workdir


def test_learned_weights_are_shipped_by_name(
    weighted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert ship(weighted, 1)["weights"] == [0.5, 0.5]
    assert ship(weighted, 2)["weights"] == SHARES
    assert ship(weighted, 2)["chosen"] == "learned"
    steps = [
        jax.device_get(tpmm.load(f"{weighted}/trajectory@{k}").params) for k in (0, 2)
    ]
    model = tpmm.load(weighted)
    assert model.origin["source"] == f"{weighted}/policy@learned..2"
    jax.tree.map(
        lambda m, x, y: np.testing.assert_allclose(
            m, 0.25 * x + 0.75 * y, rtol=0, atol=2e-7
        ),
        jax.device_get(model.params),
        *steps,
    )
    assert tree_digest(model.params) == ship(weighted, 2)["mean"]
    row = iteration_rows(weighted)[-1]
    assert [row[f"ship/weight_{k}"] for k in range(3)] == SHARES
    assert np.isfinite(row["ship/reward/mean"])
    page = write_report([weighted]).read_text()
    assert "Weights of the shipped mean" in page
    output = tmp_path / "exported"
    assert export.main([str(weighted), "--output", str(output)]) == 0
    card = (output / "README.md").read_text()
    assert "weights of 0.250, 0.000, 0.750 (fitted on held-out" in card
    assert "| the weighted mean of the policies 0 to 2 | value |" in card


def test_a_mean_that_was_not_evaluated_is_said(
    run: pathlib.Path, weighted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    plain = tmp_path / "plain"
    assert export.main([f"{weighted}/policy@mean", "--output", str(plain)]) == 0
    assert "did not evaluate this mean" in (plain / "README.md").read_text()
    drawn = dataclasses.replace(config().rollout, temperature=0.7)
    with pytest.raises(BadInput, match="ship=learned weighs samples by"):
        config(ship="learned", rollout=drawn).validate()
    with pytest.raises(BadInput, match="holds no weights; a run with ship=learned"):
        tpmm.load(f"{run}/policy@learned")


def rollout(prompt: int, answers: list[int]) -> Rollout:
    return Rollout(
        prompt="p", responses=[str(x) for x in answers], held_out=True,
        prompt_ids=[prompt], response_ids=[[x] for x in answers],
        rewards=[float(x) for x in answers],
    )  # fmt: skip


def test_every_sample_counts_with_the_policy_that_drew_it() -> None:
    """One that was drawn twice counts twice; a prompt without a pair does not."""
    pairs = CachedPairs(
        [PairRow([1], [9], [8]), PairRow([1], [9], [7]), PairRow([1], [9], [8])],
        {k: np.array([[-1.0, -2], [-1, -3], [-1, -2]]) - k for k in (1, 0, 2)},
    )
    drawn = [
        (1, rollout(1, [9, 8, 9, 7])), (2, rollout(1, [9, 8])),
        (2, rollout(2, [5, 5])), (2, rollout(1, [6, 6])),
    ]  # fmt: skip
    found = rated_samples(drawn, pairs)
    nan = np.nan
    np.testing.assert_array_equal(found.reward_PR, [[9, 8, 9, 7], [9, 8, nan, nan]])
    np.testing.assert_array_equal(found.logp_PRK[0, :, 1], [-2, -3, -2, -4])
    # theta_0 drew the first, theta_1 the second.
    np.testing.assert_array_equal(found.sampler_PR, [[-1, -2, -1, -3], [-2, -3, 0, 0]])
    assert found.prompts == [(1,), (1,)]


def test_without_a_held_out_pair_the_plain_mean_is_shipped() -> None:
    nothing = CachedPairs([], {k: np.zeros((0, 2), np.float32) for k in (0, 1)})
    fit = fit_listwise(rated_samples([(1, rollout(2, [5, 5]))], nothing))
    assert not fit.learned and fit.weights_K.tolist() == [0.5, 0.5]


def test_adapters_side_by_side_keep_their_weights() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        {"a": jnp.asarray(rng.normal(size=(1, 5, 2))), "b": jnp.asarray(b)}
        for b in (np.zeros((1, 2, 3)), *rng.normal(size=(2, 1, 2, 3)))
    ]
    lora = LoraConfig(rank=2, alpha=8.0)
    trees = [{"layers": {"mlp": {"up": pair}}} for pair in pairs]
    mean, wide = mean_adapters(trees, [1.0, 1.0, 6.0], lora)
    up = mean["layers"]["mlp"]["up"]
    products = [x["a"] @ x["b"] * 8 / 2 for x in pairs]
    np.testing.assert_allclose(
        up["a"] @ up["b"] * wide.alpha / wide.rank,
        sum(w * x for w, x in zip((1 / 8, 1 / 8, 6 / 8), products)),
        rtol=1e-6,
    )
    assert wide.rank == 4  # the first has no product


def test_held_out_prompts_are_those_that_train_nothing() -> None:
    from tpmm_jax.loop.prompts import EncodedPrompts

    prompts = EncodedPrompts(
        [4, 5, 6], ["a", "b", "c"], ["a", "b", "c"], [[1], [2], [3]],
        [True, False, True], {"answer": ["x", "y", "z"]},
    )  # fmt: skip
    kept = held_out_prompts(prompts)
    assert (kept.numbers, kept.texts, kept.ids) == ([4, 6], ["a", "c"], [[1], [3]])
    assert kept.columns == {"answer": ["x", "z"]} and kept.held_out == [True, True]


def test_a_choice_needs_held_out_prompts_and_rewards() -> None:
    for share, ship in ((0.0, "auto"), (0.05, "auto"), (0.0, "learned")):
        with pytest.raises(BadInput, match=f"ship={ship} needs held-out prompts"):
            config(pairing=PairingConfig(holdout_fraction=share), ship=ship).validate()
    with pytest.raises(BadInput, match=r"whose mean is 0\.5 for every policy"):
        config(scorer=ScorerConfig(name="judge:model")).validate()


def test_a_run_that_has_not_chosen_says_so(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "iterations/002/ship.json").unlink()
    with pytest.raises(BadInput, match="theta_2 is not evaluated"):
        tpmm.load(copy)


@pytest.mark.slow
def test_what_is_lost_is_made_again(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for path in sorted(run.glob("iterations/002/*ship*")):
        copy = tmp_path / path.name
        shutil.copytree(run, copy)
        again = copy / path.relative_to(run)
        again.unlink()
        start(config(), copy)
        assert again.read_bytes() == path.read_bytes(), path.name
        assert "finished before" in start(config(), copy)
