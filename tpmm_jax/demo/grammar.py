"""The language of the demonstration: short reviews whose sentiment is a number.

    text      prompt, then 3 sentences on different aspects of the place
    prompt    "Our Monday lunch at the old cafe:"
    sentence  "We VERB the ASPECT.", "The ASPECT was QUALITY.",
              "The ASPECT was DEGREE QUALITY." or "The ASPECT was QUALITY and QUALITY."

Verbs and qualities carry a sentiment from -1 to 1. The degree "quite" multiplies it
by 0.75, "very" by 1.25. Two qualities count their mean; they differ, and where one is
good and the other bad, "but" joins them.
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
AGES = (
    "old", "new", "small", "large", "famous", "quiet",
    "busy", "cheap", "central", "modern", "royal", "corner",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = ("morning", "lunch", "evening")

QUALITIES: dict[str, float] = {
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

_VERB = re.compile(r"We (\w+) the (\w+)\.")
_ONE = re.compile(r"The (\w+) was (?:(quite|very) )?(\w+)\.")
_TWO = re.compile(r"The (\w+) was (\w+) (and|but) (\w+)\.")


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
    kind = rng.choices(("verb", "one", "two"), (0.3, 0.4, 0.3))[0]
    if kind == "verb":
        return f"We {_pick(rng, VERBS, weights)} the {aspect}."
    word = _pick(rng, QUALITIES, weights)
    if kind == "one":
        degree = rng.choices(("", "quite ", "very "), (0.5, 0.25, 0.25))[0]
        return f"The {aspect} was {degree}{word}."
    other = word
    while other == word:
        other = _pick(rng, QUALITIES, weights)
    return f"The {aspect} was {word} {_joint(word, other)} {other}."


def _joint(first: str, second: str) -> str:
    return "but" if QUALITIES[first] * QUALITIES[second] < 0 else "and"


def _pick(
    rng: random.Random, words: dict[str, float], weights: tuple[float, ...]
) -> str:
    """Draws a bad, neutral or good word."""
    sign = rng.choices((-1, 0, 1), weights)[0]
    return rng.choice([w for w, x in words.items() if (x > 0) - (x < 0) == sign])


def read_sentence(sentence: str) -> tuple[str, float] | None:
    """Returns (aspect, sentiment in [-1, 1]), or None if it is not grammatical."""
    if found := _VERB.fullmatch(sentence):
        verb, aspect = found.groups()
        return (aspect, VERBS[verb]) if verb in VERBS else None
    if found := _ONE.fullmatch(sentence):
        aspect, degree, word = found.groups()
        if word in QUALITIES:
            return aspect, DEGREES[degree or ""] * QUALITIES[word]
    if found := _TWO.fullmatch(sentence):
        aspect, word, joint, other = found.groups()
        known = word in QUALITIES and other in QUALITIES and word != other
        if known and joint == _joint(word, other):
            return aspect, (QUALITIES[word] + QUALITIES[other]) / 2
    return None
