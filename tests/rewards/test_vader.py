"""The VADER scorer reads its lexicon once."""

from tpmm_jax.rewards.vader import _analyzer, sentiment


def test_the_analyzer_is_made_once():
    first = sentiment(["It was "], [["wonderful", "terrible"]])
    made = _analyzer.cache_info().misses
    again = sentiment(["It was "], [["wonderful", "terrible"]])
    assert _analyzer.cache_info().misses == made == 1
    assert (first == again).all() and first[0, 0] > 0 > first[0, 1]
