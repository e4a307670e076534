"""distinct-n: how little a set of texts repeats itself."""

from collections.abc import Iterable


def distinct(texts: Iterable[str], n: int) -> float:
    """Returns different n-grams of words over all n-grams, of all texts together.

    It falls as texts are added or grow longer: compare sets of equal number and
    similar length only. Words are what white space parts; 0 where no text has n.

    Source: Li et al., A Diversity-Promoting Objective Function (1510.03055).
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.split()
        grams = list(zip(*(words[i:] for i in range(n))))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0
