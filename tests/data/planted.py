"""Good rows of the hard kinds, and every kind of malformation planted among them."""

import json
import random
from collections.abc import Callable
from typing import Any

WORDS = (
    *("the", "sky", "is", "blue", "green", "and", "grass", "a", "little", "dog"),
    *("ran", "home", "today", "3.14", "don't"),
)
SPICE = (
    *("🙂", "\U0001f469\u200d\U0001f467", "café", "cafe\u0301", "日本語", "مرحبا"),
    *("\u2028", "\t", "\\n", "a\nb", '"quoted"', "{'a': [1]}", "<b>", "null"),
    *("```py\ndef f(x):\n    return x\n```", "é" * 30, "x" * 300),
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _text(rng: random.Random, count: int) -> str:
    words = rng.choices(WORDS, k=count)
    if rng.random() < 0.5:
        words.insert(rng.randrange(count + 1), rng.choice(SPICE))
    return " ".join(words)


def good_text(rng: random.Random, number: int) -> dict[str, Any]:
    """An explicit prompt with answers that are hard to tell apart, long or short."""
    kind = number % 5
    prompt = f"{number} {_text(rng, rng.randint(1, 20))}"
    chosen, rejected = _text(rng, 8), _text(rng, 9) + "!"
    if kind == 1:
        chosen, rejected = "Yes", "No"
    elif kind == 2:
        shared = _text(rng, 60)
        chosen, rejected = shared + " blue", shared + " black"
    elif kind == 3:
        chosen = f"  {chosen}\n\n"
    elif kind == 4 and number % 500 == 4:
        prompt, chosen = f"{prompt} " * 500, _text(rng, 5000)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "id": number}


def good_implicit(rng: random.Random, number: int) -> dict[str, Any]:
    """The same without a prompt of its own."""
    row = good_text(rng, number)
    front = f"Q: {row['prompt']}\nA:"
    return {side: f"{front} {row[side]}" for side in ("chosen", "rejected")}


def good_turns(rng: random.Random, number: int) -> dict[str, Any]:
    """Conversations of one to three turns, some with a system message."""
    row = good_text(rng, number)
    prompt = [user(row["prompt"])]
    for _ in range(number % 3):
        prompt += [reply(_text(rng, 5)), user(_text(rng, 5))]
    if number % 4 == 0:
        prompt.insert(0, {"role": "system", "content": "Be kind." * (number % 8 > 0)})
    sides = {side: [reply(row[side])] for side in ("chosen", "rejected")}
    return {"prompt": prompt, **sides}


GOOD: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "text": good_text,
    "implicit": good_implicit,
    "turns": good_turns,
}


def _line(row: dict[str, Any], **changes: Any) -> bytes:
    made = {key: v for key, v in {**row, **changes}.items() if v is not ...}
    return json.dumps(made, ensure_ascii=False).encode()


# Kind: the bad line made of a good row of texts, and the column that is to be named.
KINDS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str | None]] = {
    "no chosen": (lambda r: _line(r, chosen=...), "chosen"),
    "no rejected": (lambda r: _line(r, rejected=...), "rejected"),
    "empty chosen": (lambda r: _line(r, chosen=""), "chosen"),
    "blank rejected": (lambda r: _line(r, rejected=" \n\t"), "rejected"),
    "empty prompt": (lambda r: _line(r, prompt=""), "prompt"),
    "null chosen": (lambda r: _line(r, chosen=None), "chosen"),
    "number": (lambda r: _line(r, rejected=3), "rejected"),
    "object": (lambda r: _line(r, chosen={"text": "a"}), "chosen"),
    "list of texts": (lambda r: _line(r, chosen=["a"]), "chosen"),
    "empty messages": (lambda r: _line(r, rejected=[]), "rejected"),
    "unknown role": (
        lambda r: _line(r, chosen=[{"role": "bot", "content": "a"}]),
        "chosen",
    ),
    "no content": (lambda r: _line(r, rejected=[{"role": "assistant"}]), "rejected"),
    "equal sides": (lambda r: _line(r, rejected=r["chosen"]), "rejected"),
    "one side messages": (lambda r: _line(r, rejected=[reply("a")]), "rejected"),
    "other format": (
        lambda r: _line(r, chosen=[reply("a")], rejected=[reply("b")]),
        "chosen",
    ),
    "column twice": (lambda r: _line(r)[:-1] + b', "prompt": "again"}', "prompt"),
    "cut off": (lambda r: _line(r)[:-4], None),
    "not JSON": (lambda r: b"prompt: a", None),
    "not UTF-8": (lambda r: _line(r)[:-1] + b', "a": "caf\xe9"}', None),
    "half a surrogate": (lambda r: _line(r)[:-1] + b', "note": "\\ud83d"}', "note"),
    "a list": (lambda r: b'["a", "b", "c"]', None),
    "NaN": (lambda r: _line(r)[:-1] + b', "score": NaN}', "score"),
}


def plant(
    good: int, each: int, seed: int = 0
) -> tuple[bytes, dict[int, tuple[str, str | None]]]:
    """A JSONL file of good texts with ``each`` bad rows of every kind among them.

    Returns:
      The file, and {line: (kind, column)} of what was planted.
    """
    rng = random.Random(seed)
    lines = [_line(good_text(rng, n)) for n in range(good)]
    places = rng.sample(range(good), k=each * len(KINDS))
    planted = {}
    for place, kind in zip(places, [k for k in KINDS for _ in range(each)]):
        make, column = KINDS[kind]
        lines[place] = make(json.loads(lines[place]))
        planted[place + 1] = (kind, column)
    # A blank line at the end would be layout.
    return b"\n".join([*lines, _line(good_text(rng, good))]) + b"\n", planted
