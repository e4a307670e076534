"""The language of the demonstration: short reviews whose sentiment is a number.

    text      prompt, then 3 sentences on different aspects of the place
    prompt    "Our Monday lunch at the old cafe:"
    sentence  "The ASPECT was QUALITIES." or "We VERB the ASPECT."
    qualities one, or two of equal sign joined by "and", or of unequal sign by "but"
    quality   an adjective, with "quite" (x 0.75) or "very" (x 1.25) or nothing before

Verbs and adjectives carry a sentiment from -1 to 1; two qualities count their mean.
"""

import random
import re

PLACES: dict[str, tuple[str, ...]] = {
    "cafe": ("coffee", "cake", "music", "garden", "waiter", "bill"),
    "hotel": ("room", "bed", "breakfast", "pool", "view", "bill"),
    "museum": ("guide", "collection", "shop", "garden", "hall", "ticket"),
    "cinema": ("film", "sound", "seat", "popcorn", "hall", "ticket"),
    "beach": ("sand", "water", "view", "bar", "music", "parking"),
    "market": ("fruit", "bread", "cheese", "music", "crowd", "parking"),
}
AGES = ("old", "new", "small", "large", "famous", "quiet")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = ("morning", "lunch", "evening")

ADJECTIVES: dict[str, float] = {
    **dict.fromkeys(("perfect", "lovely", "superb"), 0.8),
    **dict.fromkeys(("good", "pleasant", "decent"), 0.4),
    **dict.fromkeys(("ordinary", "usual", "average"), 0.0),
    **dict.fromkeys(("dull", "poor", "tired"), -0.4),
    **dict.fromkeys(("terrible", "awful", "dreadful"), -0.8),
}
DEGREES: dict[str, float] = {"": 1.0, "quite": 0.75, "very": 1.25}
VERBS: dict[str, float] = {
    "loved": 1.0, "liked": 0.5, "noticed": 0.0, "disliked": -0.5, "hated": -1.0
}  # fmt: skip
SENTENCES = 3
# The writer's mood: its share of texts, and the weights of bad, neutral, good words.
MOODS: dict[str, tuple[float, tuple[float, float, float]]] = {
    "cross": (0.4, (0.7, 0.2, 0.1)),
    "even": (0.3, (0.35, 0.3, 0.35)),
    "glad": (0.3, (0.1, 0.2, 0.7)),
}

# A word with the space before it, or a mark: the demonstration's tokens.
WORD = r" ?\w+|[^\w\s]"

_SENTENCE = re.compile(
    r"(?:We (?P<verb>\w+) the (?P<object>\w+)"
    r"|The (?P<subject>\w+) was (?:(?P<degree1>quite|very) )?(?P<quality1>\w+)"
    r"(?: (?P<joint>and|but) (?:(?P<degree2>quite|very) )?(?P<quality2>\w+))?)\."
)


def all_prompts() -> list[str]:
    """Returns every prompt of the grammar, in a fixed order."""
    return [
        f"Our {day} {time} at the {age} {place}:"
        for day in DAYS
        for time in TIMES
        for age in AGES
        for place in PLACES
    ]


def place_of(prompt: str) -> str | None:
    """Returns the place that a prompt speaks of, or None."""
    found = [word for word in re.findall(r"\w+", prompt) if word in PLACES]
    return found[-1] if found else None


def make_texts(prompts: list[str], seed: int) -> list[str]:
    """Returns one review of each prompt, drawn from the grammar."""
    rng = random.Random(seed)
    return [prompt + _review(rng, str(place_of(prompt))) for prompt in prompts]


def _review(rng: random.Random, place: str) -> str:
    moods = list(MOODS.values())
    weights = rng.choices(moods, [share for share, _ in moods])[0][1]
    aspects = rng.sample(PLACES[place], SENTENCES)
    return "".join(" " + _write(rng, aspect, weights) for aspect in aspects)


def _write(rng: random.Random, aspect: str, weights: tuple[float, ...]) -> str:
    if rng.random() < 0.3:
        return f"We {_pick(rng, VERBS, weights)} the {aspect}."
    first, words = _quality(rng, weights)
    if rng.random() < 0.4:
        second, more = first, words
        while more.split()[-1] == words.split()[-1]:
            second, more = _quality(rng, weights)
        words += (" but " if first * second < 0 else " and ") + more
    return f"The {aspect} was {words}."


def _quality(rng: random.Random, weights: tuple[float, ...]) -> tuple[float, str]:
    degree = rng.choices(list(DEGREES), (0.5, 0.25, 0.25))[0]
    word = _pick(rng, ADJECTIVES, weights)
    return ADJECTIVES[word], f"{degree} {word}".strip()


def _pick(
    rng: random.Random, words: dict[str, float], weights: tuple[float, ...]
) -> str:
    """Draws a bad, neutral or good word."""
    sign = rng.choices((-1, 0, 1), weights)[0]
    return rng.choice([w for w, value in words.items() if _sign(value) == sign])


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def read_sentence(sentence: str) -> tuple[str, float] | None:
    """Returns (aspect, sentiment in [-1, 1]), or None if it is not grammatical."""
    found = _SENTENCE.fullmatch(sentence)
    if found is None:
        return None
    if found["verb"]:
        value = VERBS.get(found["verb"])
        return None if value is None else (found["object"], value)
    first = _value(found["degree1"], found["quality1"])
    if found["joint"] is None:
        return None if first is None else (found["subject"], first)
    second = _value(found["degree2"], found["quality2"])
    if first is None or second is None or found["quality1"] == found["quality2"]:
        return None
    joint = "but" if first * second < 0 else "and"
    if found["joint"] != joint:
        return None
    return found["subject"], (first + second) / 2


def _value(degree: str | None, word: str) -> float | None:
    value = ADJECTIVES.get(word)
    return None if value is None else DEGREES[degree or ""] * value
