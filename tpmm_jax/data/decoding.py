"""Token ids of a completion as text."""

from collections.abc import Sequence
from typing import Any


def completion_texts(
    tokenizer: Any, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[str]:
    """Returns each completion's text, special tokens stripped.

    Read behind its prompt, so that prompt + completion is the whole text: some
    tokenizers drop a leading space from ids that are decoded alone.
    """
    head = tokenizer.decode(prompt_ids, skip_special_tokens=True)
    texts = []
    for ids in completions:
        whole = tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=True)
        if whole.startswith(head):
            texts.append(whole[len(head) :])
        else:
            texts.append(tokenizer.decode(ids, skip_special_tokens=True))
    return texts
