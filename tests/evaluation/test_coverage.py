"""95 % intervals hold the truth in 93 to 97 % of 1,000 repeats of known data."""

from collections.abc import Callable

import numpy as np
import pytest

from tpmm_jax.evaluation import Interval, mean_interval, paired_interval, rate_interval

REPEATS = 1_000
Draw = Callable[[np.random.Generator, int], tuple[Interval, float]]


def normal(rng: np.random.Generator, B: int) -> tuple[Interval, float]:
    return mean_interval(rng.normal(size=(B, 1))), 0.0


def exponential(rng: np.random.Generator, B: int) -> tuple[Interval, float]:
    return mean_interval(rng.exponential(size=(B, 1))), 1.0


def saturated(rng: np.random.Generator, B: int) -> tuple[Interval, float]:
    """Of a bounded score, most of it near the top."""
    return mean_interval(rng.beta(1.2, 0.25, size=(B, 1))), 1.2 / 1.45


def clustered(rng: np.random.Generator, B: int) -> tuple[Interval, float]:
    """Four samples per prompt with a correlation of 0.6, skewed between prompts."""
    prompt = rng.exponential(size=(B, 1))
    return mean_interval(prompt + 0.8 * rng.normal(size=(B, 4))), 1.0


def paired(rng: np.random.Generator, B: int) -> tuple[Interval, float]:
    prompt = 3 * rng.normal(size=(B, 1))
    ours = prompt + rng.exponential(size=(B, 4))
    return paired_interval(ours, prompt + rng.normal(size=(B, 4))), 1.0


def rate(truth: float, ties: float, S: int) -> Draw:
    """Win rates whose chance differs from prompt to prompt where S > 1."""

    def draw(rng: np.random.Generator, B: int) -> tuple[Interval, float]:
        chance = (truth - ties / 2) / (1 - ties)
        by_prompt = np.full((B, 1), chance)
        if S > 1:
            by_prompt = rng.beta(3 * chance, 3 * (1 - chance), size=(B, 1))
        won = np.float64(rng.random((B, S)) < by_prompt)
        return rate_interval(np.where(rng.random((B, S)) < ties, 0.5, won)), truth

    return draw


CASES: dict[str, Draw] = {
    "normal": normal,
    "exponential": exponential,
    "saturated": saturated,
    "clustered": clustered,
    "paired": paired,
    "wins 0.5": rate(0.5, 0.3, 1),
    "wins 0.5, 4 samples": rate(0.5, 0.3, 4),
    "wins 0.85": rate(0.85, 0.1, 1),
    "wins 0.85, 4 samples": rate(0.85, 0.1, 4),
}


def covered(name: str, B: int) -> float:
    # Of each case its own numbers.
    rng = np.random.default_rng([list(CASES).index(name), B, 7])
    hits = 0
    for _ in range(REPEATS):
        (_, low, high), truth = CASES[name](rng, B)
        hits += low <= truth <= high
    return hits / REPEATS


@pytest.mark.parametrize("B", [48, 128])
@pytest.mark.parametrize("name", CASES)
def test_coverage(name: str, B: int) -> None:
    assert 0.93 <= covered(name, B) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("B", [64, 96, 256])
@pytest.mark.parametrize("name", CASES)
def test_coverage_of_other_sizes(name: str, B: int) -> None:
    assert 0.93 <= covered(name, B) <= 0.97


@pytest.mark.parametrize("chance", [0.0, 0.02, 0.5, 1.0])
def test_rare_losses_are_not_called_impossible(chance: float) -> None:
    """At least as often as said, down to no win at all."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(REPEATS):
        _, low, high = rate_interval(np.float64(rng.random((48, 1)) < chance))
        assert 0 <= low < high <= 1
        hits += low <= chance <= high
    assert hits >= 0.93 * REPEATS


def test_pairs_of_unequal_numbers_a_prompt() -> None:
    """As held-out pairs are: up to six of a prompt, alike."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(REPEATS):
        sizes = rng.integers(1, 7, size=96)
        chances = rng.beta(2, 1, size=96)
        values = [
            np.float64(rng.random(n) < p) for n, p in zip(sizes, chances, strict=True)
        ]
        _, low, high = rate_interval(values)
        hits += low <= 2 / 3 <= high
    assert 0.93 <= hits / REPEATS <= 0.97


if __name__ == "__main__":
    sizes = (48, 64, 96, 128, 256)
    print(f"| interval | {' | '.join(f'B = {B}' for B in sizes)} |")
    print(f"|---|{'---|' * len(sizes)}")
    for case in CASES:
        shares = " | ".join(f"{covered(case, B):.3f}" for B in sizes)
        print(f"| {case} | {shares} |", flush=True)
