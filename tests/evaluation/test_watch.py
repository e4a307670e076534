"""The watch warns of what it is for, with numbers and advice, and of nothing else."""

import numpy as np

from tpmm_jax.evaluation import Evaluated, watch


def history(*steps: dict) -> list[Evaluated]:
    rng = np.random.default_rng(0)
    found = []
    for t, step in enumerate(steps):
        noise = rng.normal(size=(64, 1)) * 0.1
        found.append(
            Evaluated(
                "theta_0" if t == 0 else f"iteration {t}",
                step.get("reward", 0.0) + noise,
                step.get("length", 20.0),
                step.get("kl", 0.0),
                {
                    "judge careful": step.get("judge", 0.5)
                    + 0.1 * rng.normal(size=(64, 1))
                },
            )
        )
    return found


def warnings(*steps: dict, **limits: float) -> list[str]:
    return watch(
        history(*steps),
        max_kl_per_token=limits.get("kl", 0.5),
        max_length_ratio=limits.get("ratio", 1.5),
        look_at="evaluation.jsonl",
    )


def test_an_honest_run_gives_none() -> None:
    steps = [{}, {"reward": 1.0, "judge": 0.6, "kl": 0.9}]
    assert warnings(steps[0]) == warnings(*steps) == []
    assert warnings(*steps, {"reward": 2.0, "judge": 0.7, "kl": 1.5}) == []


def test_reward_up_and_judge_down_since_its_best_iteration() -> None:
    [text] = warnings(
        {},
        {"reward": 1.0, "judge": 0.7, "kl": 2.0},
        {"reward": 1.5, "judge": 0.65, "kl": 2.5},
        {"reward": 2.0, "judge": 0.45, "kl": 3.0},
    )
    assert "judge careful fell since iteration 1" in text and "95 %" in text
    for advice in ("evaluation.jsonl", "learning rate", "beta", "stop at iteration 1"):
        assert advice in text


def test_one_of_both_alone_is_no_warning() -> None:
    good = {"reward": 1.0, "judge": 0.7, "kl": 2.0}
    assert not warnings({}, good, {"reward": 0.5, "judge": 0.4, "kl": 2.0})
    assert not warnings({}, good, {"reward": 2.0, "judge": 0.7, "kl": 2.0})


def test_a_policy_far_away() -> None:
    [text] = warnings({}, {"kl": 11.0, "length": 20.0})
    assert "0.55 nats per token" in text and "stop at theta_0" in text
    assert not warnings({}, {"kl": 11.0}, kl=0.6)


def test_a_kl_that_jumps() -> None:
    [text] = warnings({}, {"kl": 0.2}, {"kl": 1.9})
    assert "from 0.20 to 1.90" in text and "stop at iteration 1" in text
    # A steady drift is none: the root of KL grows by as much each time.
    assert not warnings({}, {"kl": 0.2}, {"kl": 0.8}, {"kl": 1.8})
    # Not in the first iteration, and not below a nat.
    assert not warnings({}, {"kl": 1.9})
    assert not warnings({}, {"kl": 0.05}, {"kl": 0.9})
    apart = history({}, {"kl": 0.2}, {"kl": 1.9})
    limits = {"max_kl_per_token": 0.5, "max_length_ratio": 1.5}
    assert not watch(apart, **limits, consecutive=False)


def test_lengths_that_run_away() -> None:
    [text] = warnings({}, {"length": 31.0})
    assert "longer" in text and "31.0" in text and "1.55" in text
    [text] = warnings({}, {"length": 25.0}, {"length": 13.0})
    assert "shorter" in text and "stop at iteration 1" in text
    assert not warnings({}, {"length": 13.0}, ratio=2.0)


def test_what_is_not_defined_is_not_watched() -> None:
    first, *_ = history({})
    other = Evaluated("other", first.reward_BR + 1, None, None, {})
    assert not watch([first, other], max_kl_per_token=0.5, max_length_ratio=1.5)
