"""Checking data: the files as a run reads and encodes them, counted over all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tpmm_jax.data.batches import PairRow
from tpmm_jax.data.checks import (
    Key,
    content_key,
    empty_count,
    end_counts,
    leak_counts,
    length_counts,
    pair_key,
    repeat_counts,
    text_lengths,
)
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Content, as_dicts, written
from tpmm_jax.data.offline import prepare_pairs, wants_template
from tpmm_jax.data.pairs import PreferencePair, read_pair_set
from tpmm_jax.data.problems import Defect, Problems, in_order
from tpmm_jax.data.prompts import Prompt, read_prompt_set
from tpmm_jax.data.sources import read_rows
from tpmm_jax.data.tokens import encode_prompts
from tpmm_jax.errors import BadInput
from tpmm_jax.rewards.raters import NamedScorer

_SCORED_AT_ONCE = 256


@dataclass
class Checked:
    """What was found in all files.

    Attributes:
      rows: read, bad ones included.
      counts: by name; a check that was skipped has none.
      chat: whether a chat template wrote rows.
      skipped: (what was not checked, what it needs).
    """

    rows: int = 0
    errors: list[Defect] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[PreferencePair] = field(default_factory=list)
    encoded: list[PairRow] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    chat: bool = False


def check_pairs(
    files: Sequence[str],
    data: DataConfig,
    tokenizer: Any,
    eos_ids: tuple[int, ...] = (),
    *,
    auto_chat: bool = False,
) -> Checked:
    """Reads and encodes preference pairs as a run does, and counts.

    Args:
      files: sources like data.pairs.
      data: columns, limits and the chat template.
      tokenizer: None: what needs one is skipped.
      eos_ids: further ids that end a completion.
      auto_chat: switch the chat template on for files whose rows are messages.
    """
    found = Checked()
    for file in files:
        try:
            one = prepare_pairs(
                file, data, tokenizer, eos_ids=eos_ids, auto_chat=auto_chat
            )
        except BadInput as error:
            found.errors.append(Defect(file, None, str(error)))
            continue
        found.rows += one.counts["rows_read"]
        found.errors += one.problems.found
        counts = dict(one.counts)
        # In the summary "rows" are all that were read.
        counts["rows_kept"] = counts.pop("rows", 0)
        found.counts.update(counts)
        found.pairs += one.pairs
        found.chat |= one.chat
        found.encoded += one.rows
    found.counts["empty"] = empty_count(found.errors)
    found.counts.update(dict.fromkeys(("malformed", "identical", "pairs"), 0))
    # Over all files, not the sum of each one's.
    for name in ("duplicate_prompts", "duplicate_pairs"):
        found.counts.pop(name, None)
    found.counts.update(repeat_counts(found.pairs))
    if tokenizer is None:
        del found.counts["rows_kept"]
        found.skipped.append(("tokens, masks, BOS and EOS, cuts", "--model"))
        found.counts.update(length_counts(text_lengths(found.pairs)))
        return found
    sides = ((len(row.chosen_ids), len(row.rejected_ids)) for row in found.encoded)
    found.counts.update(length_counts(sides))
    ends = {tokenizer.eos_token_id, *eos_ids}
    found.counts.update(
        end_counts(found.encoded, bos=tokenizer.bos_token_id, ends=ends)
    )
    return found


def check_prompts(
    files: Sequence[str], data: DataConfig, tokenizer: Any, *, auto_chat: bool = False
) -> Checked:
    """Reads and encodes prompts as a run does, and counts."""
    found = Checked()
    for file in files:
        problems = Problems(file)
        try:
            prompts, rows = read_prompt_set(
                file, problems, field=data.prompt_field, split=data.split
            )
        except BadInput as error:
            found.errors.append(Defect(file, None, str(error)))
            continue
        found.rows += rows
        found.counts["malformed"] += len(problems.origins())
        found.errors += problems.found
        found.prompts += prompts
    found.counts["empty"] = empty_count(found.errors)
    keys = [content_key(prompt.content) for prompt in found.prompts]
    found.counts["prompts"] = len(keys)
    found.counts["duplicate_prompts"] = len(keys) - len(set(keys))
    if tokenizer is None:
        found.skipped.append(("tokens, BOS, cuts", "--model"))
        return found
    found.chat = data.chat
    if auto_chat and found.prompts:
        found.chat |= wants_template(tokenizer, found.prompts[0].content)
    problems = Problems("prompts")
    encoded = encode_prompts(
        tokenizer,
        found.prompts,
        chat=found.chat,
        max_length=data.max_prompt_length,
        truncate=data.truncate_prompt,
        problems=problems,
    )
    found.errors += problems.found
    found.counts["prompt_truncated"] = sum(prompt.truncated for prompt in encoded)
    bos = tokenizer.bos_token_id
    found.counts["bos_first"] = sum(prompt.ids[0] == bos for prompt in encoded)
    found.counts["tokens"] = sum(len(prompt.ids) for prompt in encoded)
    return found


def check_leaks(files: Sequence[str], data: DataConfig, found: Checked) -> None:
    """Counts evaluation rows that are trained on; pairs and prompts are both read."""
    if not files:
        found.skipped.append(("leaks into the evaluation", "--eval FILE"))
        return
    prompts: list[Key] = []
    pairs: list[Key] = []
    for file in files:
        problems = Problems(file)
        try:
            if _holds_pairs(file, data):
                some = read_pair_set(
                    file, problems, split=data.split, fields=data.fields
                ).pairs
                prompts += [content_key(pair.prompt) for pair in some]
                pairs += [pair_key(pair) for pair in some]
            else:
                read = read_prompt_set(
                    file, problems, field=data.prompt_field, split=data.split
                )
                prompts += [content_key(prompt.content) for prompt in read.prompts]
        except BadInput as error:
            found.errors.append(Defect(file, None, str(error)))
        # A file that is checked and evaluated on is listed once.
        known = set(found.errors)
        found.errors += [defect for defect in problems.found if defect not in known]
    trained = [content_key(p.prompt) for p in found.pairs]
    trained += [content_key(p.content) for p in found.prompts]
    whole = [pair_key(p) for p in found.pairs]
    found.counts.update(leak_counts(trained, whole, prompts, pairs))


def _holds_pairs(file: str, data: DataConfig) -> bool:
    rows = read_rows(file, split=data.split, problems=Problems(file))
    chosen = data.fields.get("chosen", "chosen")
    return any(chosen in row.data for row in rows)


def check_labels(scorer: NamedScorer | None, found: Checked) -> None:
    """Counts the pairs whose rejected side a scorer prefers."""
    if scorer is None:
        found.skipped.append(("labels against a scorer", "--scorer module:function"))
        return
    counts = Counter[str](scorer_agrees=0, scorer_ties=0, scorer_contradicts=0)
    for start in range(0, len(found.pairs), _SCORED_AT_ONCE):
        pairs = found.pairs[start : start + _SCORED_AT_ONCE]
        rewards_BN = scorer(
            [plain_text(p.prompt) for p in pairs],
            [[plain_text(p.chosen), plain_text(p.rejected)] for p in pairs],
        )
        margins_B = rewards_BN[:, 0] - rewards_BN[:, 1]
        counts["scorer_agrees"] += int((margins_B > 0).sum())
        counts["scorer_ties"] += int((margins_B == 0).sum())
        counts["scorer_contradicts"] += int((margins_B < 0).sum())
    found.counts.update(counts)


def plain_text(content: Content) -> str:
    """A text as it is; one message's content; of several messages one line a turn."""
    text = written(content)
    if isinstance(text, str) or text is None:
        return text or ""
    if len(text) == 1:
        return text[0].content
    return "\n".join(f"{m['role']}: {m['content']}" for m in as_dicts(text))


def error_entry(defect: Defect) -> dict[str, Any]:
    """A defect as JSON; "row" is there where rows are counted, not lines."""
    place = defect.place
    row = {} if place.row is None else {"row": place.row}
    what = {"field": defect.field, "reason": defect.reason}
    return {"file": place.file, "line": place.number, **row, **what}


def summary(found: Checked) -> dict[str, Any]:
    """What --json prints."""
    errors = [error_entry(defect) for defect in in_order(found.errors)]
    counts = {name: int(count) for name, count in found.counts.items()}
    return {"rows": found.rows, "errors": errors, "counts": counts}
