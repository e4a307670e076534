"""Where an implicit prompt ends: the common prefix of chosen and rejected.

Text is cut at a word or line boundary, conversations between messages; for transcripts
see ``_transcripts``.
"""

import unicodedata

import regex

from tpmm_jax.data.messages import Conversation

_INSIDE_WORDS = frozenset("'’-._,@/\u2018\u2011")
# What a reader takes for one character: a flag, a family of emoji, a letter with marks.
_CHARACTER = regex.compile(r"\X")
# How far back a character's beginning is looked for.
_REACH = 256


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts into (prompt, chosen, rejected).

    The prompt is the longest common beginning that ends between words. Spaces and tabs
    at the cut go to the completions, as tokenizers attach them to the word that
    follows; line breaks stay with the prompt. Where one text is the beginning of the
    other and ends a word there, its completion is empty: it says that the text ends.
    """
    common = common_length(chosen, rejected)
    cut = common
    while cut and (_inside_word(chosen, cut) or _inside_word(rejected, cut)):
        cut -= 1
    if cut < max(len(chosen), len(rejected)):
        while cut and _blank(chosen[cut - 1]):
            cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_messages(
    chosen: Conversation, rejected: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    """Split after the last common message; a system message alone is not a prompt.

    Where the conversations part at a user's message the prompt ends with the
    assistant's, so that nothing shared stands in both completions.
    """
    common = 0
    for one, other in zip(chosen, rejected):
        if one != other:
            break
        common += 1
    while common and chosen[common - 1].role == "system":
        common -= 1
    return chosen[:common], chosen[common:], rejected[common:]


def _blank(char: str) -> bool:
    return char == "\t" or unicodedata.category(char) == "Zs"


def common_length(one: str, other: str) -> int:
    """The number of characters at the front that are equal."""
    low, high = 0, min(len(one), len(other))
    # By halves: comparing slices is far faster than comparing characters.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _inside_word(text: str, at: int) -> bool:
    """Whether cutting before ``text[at]`` would part one word or one character."""
    if at >= len(text):
        return False
    before, after = text[at - 1], text[at]
    if _inside_character(text, at):
        return True
    if _attaches(after) or before == "\u200d":
        return True
    if before == "\r" and after == "\n":
        return True
    if _letter(before) and _letter(after):
        return True
    # "3.14", "don't", "e-mail": marks between letters belong to the word.
    if before in _INSIDE_WORDS and _letter(after):
        return at >= 2 and _letter(text[at - 2])
    if _letter(before) and after in _INSIDE_WORDS:
        return at + 1 < len(text) and _letter(text[at + 1])
    return False


def _inside_character(text: str, at: int) -> bool:
    if text[at - 1].isascii() and text[at].isascii():
        return False
    # What stands before an ASCII letter or space has no part in what follows it.
    start = at - 1
    while start > max(0, at - _REACH) and not text[start].isascii():
        start -= 1
    ends = (m.end() for m in _CHARACTER.finditer(text, start, at + 1))
    return next(end for end in ends if end >= at) != at


def _letter(char: str) -> bool:
    # Scripts without spaces (wide characters) may be cut between characters.
    if unicodedata.east_asian_width(char) in "WF":
        return False
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"


def _attaches(char: str) -> bool:
    """Combining marks, joiners and emoji modifiers never begin a completion."""
    return (
        unicodedata.category(char)[0] == "M"
        or char == "\u200d"
        or "\U0001f3fb" <= char <= "\U0001f3ff"
    )
