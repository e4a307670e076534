"""Text of a file or a model, made safe to show on a terminal."""

import re

# Controls but line break and tab, marks that turn the direction of what follows, and
# halves of surrogate pairs, which no encoding has.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns text whose control codes and direction marks are written as escapes.

    >>> printable("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return _UNSAFE.sub(lambda match: repr(match[0])[1:-1], text)
