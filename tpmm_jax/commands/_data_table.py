"""What a person sees of a data check: one table, a few rows, the errors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpmm_jax.commands._data_checks import Checked, PromptRow
from tpmm_jax.data.problems import place_of
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.view import ShownToken, count_text, mark, token_texts, view_row

# Tokens of a part that are shown at each of its ends; the middle is left out.
_SHOWN = 24


class Check(NamedTuple):
    """A line of the table.

    Attributes:
      of: the count that this is a share of; "": no share.
      then: what a run does about it.
      bad: how a count above 0 looks.
      always: shown even where the count is 0.
    """

    name: str
    text: str
    of: str = "rows"
    then: str = ""
    bad: str = ""
    always: bool = True


def _rare(
    name: str, text: str, of: str = "pairs", then: str = "", bad: str = ""
) -> Check:
    """A line that is shown only where there is something to say."""
    return Check(name, text, of, then, bad, always=False)


REFUSED, DROPPED, CUT, USED = "refused", "dropped", "cut", "used"
CHECKS: dict[str, Sequence[Check]] = {
    "rows": (
        _rare("blank_lines", "blank lines", "", "passed over"),
        Check("malformed", "malformed", then=REFUSED, bad="red"),
        Check("empty", "  of these with something empty", bad="red"),
        Check("identical", "chosen equals rejected", then=REFUSED, bad="red"),
        Check("pairs", "pairs that can be read", then=USED),
        Check("prompts", "prompts that can be read", then=USED),
        _rare(
            "refused_whole",
            "refused as a whole, see below",
            "",
            "always refused",
            "red",
        ),
        Check("duplicate_prompts", "prompts that repeat an earlier one", "given"),
        Check(
            "duplicate_pairs", "pairs that repeat an earlier one", "pairs", bad="yellow"
        ),
        _rare("labelled_both_ways", "pairs labelled both ways round", bad="yellow"),
        _rare("ends_early", "one side ends where the other goes on"),
        _rare("prompt_repeated", "prompt repeated in the answers", then=CUT),
        _rare("begins_with_prompt", "answers that begin with the prompt"),
        _rare("scored_rows", "rows of several scored answers", "", USED),
        _rare("no_preference", "  of these with equal scores", "", DROPPED, "yellow"),
        _rare("continued", "answers that go on with the prompt's last message", ""),
        _rare("several_turns", "answers of several turns", then="all trained on"),
        _rare("with_system", "system messages from a column", then=USED),
        _rare("with_history", "earlier turns from a column", then=USED),
        _rare("keys_left_out", "messages with other keys", then="left out"),
    ),
    "labels": (
        Check("answers", "answers with a rating", "", USED),
        _rare("over_long_answers", "  of these over the limit", "", DROPPED, "yellow"),
        _rare("repeated_answers", "  of these repeat another one", "", "used once"),
        _rare("without_partner", "  of these without another one", "", "left out"),
        _rare("equal_scores", "pairs rated alike", "", DROPPED),
        _rare("below_min_margin", "pairs below the least margin", "", DROPPED),
        _rare("with_margin", "pairs with a margin"),
        _rare("tied", "ratings in the file tie", bad="yellow"),
        _rare("scored_otherwise", "ratings in the file disagree", bad="yellow"),
        Check("scorer_contradicts", "the scorer prefers rejected", "pairs"),
        Check("scorer_ties", "the scorer ties", "pairs"),
        Check("chosen_longer", "chosen is longer, in {unit}", "compared"),
        Check("rejected_longer", "rejected is longer, in {unit}", "compared"),
    ),
    "tokens": (
        _rare("not_encoded", "cannot be tokenised", "given", REFUSED, "red"),
        Check("identical_tokens", "equal once tokenised", "pairs", DROPPED, "yellow"),
        Check(
            "identical_after_truncation", "equal once cut", "pairs", DROPPED, "yellow"
        ),
        Check("rows_kept", "pairs that train", then=USED),
        Check("prompts_kept", "prompts to sample from", then=USED),
        Check("prompt_truncated", "prompts over the limit", "given", CUT, "yellow"),
        Check("chosen_truncated", "chosen over the limit", "pairs", CUT, "yellow"),
        Check("rejected_truncated", "rejected over the limit", "pairs", CUT, "yellow"),
        Check("bos_first", "BOS at the start of the prompt", "encoded"),
        Check("bos_misplaced", "BOS twice or in an answer", "encoded", bad="red"),
        _rare("bos_removed", "BOS before a completion", "", "taken out"),
        Check("ended_chosen", "EOS or end of turn ends chosen", "encoded"),
        Check("ended_rejected", "EOS or end of turn ends rejected", "encoded"),
        _rare("behind_end", "blanks or an end behind the end", "", "left out"),
        _rare("eos_inside", "text behind the end of an answer", "", REFUSED, "red"),
        Check("boundary_merged", "completions not joined at a token", "", "read apart"),
        _rare("template_rewrote_prompt", "template alters the prompt", "", "kept open"),
        _rare(
            "message_left_out", "a message is not in the template's text", bad="yellow"
        ),
        _rare("special_in_message", "a message holds a special token", bad="yellow"),
        _rare("unknown_tokens", "completions with unknown tokens", "", bad="yellow"),
    ),
    "reward model": (
        _rare("reward_too_long", "over its positions", "answers", "never cut", "red"),
        _rare("reward_pad_last", "end in its pad id", "answers", bad="yellow"),
        _rare("reward_pad_inside", "hold its pad id before the end", "answers"),
    ),
    "evaluation": (
        Check(
            "eval_same_prompt", "its prompt is trained on", "evaluation", "", "yellow"
        ),
        Check("eval_same_pair", "its pair is trained on", "evaluation", "", "red"),
    ),
}


def data_table(found: Checked, drops: bool) -> RenderableType:
    """Returns the table of all counts.

    Args:
      drops: whether bad rows are dropped instead of refused.
    """
    counts = found.counts
    outcomes = {USED: ""} if found.refused else {REFUSED: DROPPED} if drops else {}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    table.add_column("a run")
    bases = _bases(found)
    for section, checks in CHECKS.items():
        lines = [
            check
            for check in checks
            if check.name in counts and (check.always or counts[check.name])
        ]
        if not lines:
            continue
        whole = f"{bases[section]:,}" if section in bases else ""
        table.add_row(Text(section, style="bold"), whole, "", "")
        for check in lines:
            text = check.text.format(unit=found.unit)
            check = check._replace(text=text)
            table.add_row(*_cells(check, counts, bases, outcomes))
    parts: list[RenderableType] = [table]
    for what, needs in found.skipped:
        parts.append(Text(f"not checked: {what} (give {needs})", style="dim"))
    return Group(*parts)


def _bases(found: Checked) -> dict[str, int]:
    """Returns what counts are shares of; a section's own stands in its head."""
    lengths = ("chosen_longer", "rejected_longer", "equally_long")
    return {
        "rows": found.rows,
        "pairs": found.counts["pairs"],
        "given": found.counts["pairs"] or found.counts["prompts"],
        "encoded": len(found.encoded) + len(found.encoded_prompts),
        "compared": sum(found.counts[name] for name in lengths),
        "tokens": found.counts["tokens"],
        "evaluation": found.counts["eval_rows"],
        "answers": found.counts["reward_answers"],
    }


def _cells(
    check: Check,
    counts: Mapping[str, int],
    bases: Mapping[str, int],
    outcomes: Mapping[str, str],
) -> list[Text]:
    count, of = counts[check.name], bases.get(check.of, 0)
    style = check.bad if count else "dim"
    then = outcomes.get(check.then, check.then) if count else ""
    return [
        Text(f"  {check.text}", style=style),
        Text(f"{count:,}", style=style),
        Text(_share(count, of) if count else "", style=style),
        Text(then, style=style),
    ]


def _share(count: int, of: int) -> str:
    if not of:
        return ""
    share = 100 * count / of
    # Neither a few of many nor all but a few may pass for none or all.
    if 0 < share < 0.1:
        return "<0.1 %"
    if 99.9 < share < 100:
        return ">99.9 %"
    return f"{share:.1f} %"


def rows_view(
    tokenizer: Any, rows: Sequence[PairRow], *, whole: bool
) -> RenderableType:
    """Returns rows token by token.

    Args:
      whole: show every token; otherwise the middle of a long part is left out.
    """
    legend = Text.assemble(
        ("plain", "dim"),
        " is the prompt, which is not trained on; ",
        ("[brackets]", "green"),
        " are under the completion mask; ",
        ("·", "dim"),
        " is padding; ▁ is a space",
    )
    parts: list[RenderableType] = [legend]
    for row in rows:
        parts += [Text(), Text(row.origin, style="bold")]
        for name, tokens in view_row(tokenizer, row).items():
            head = Text(f"{name}, {count_text(tokens)}", style="dim")
            parts += [head, _tokens(tokens, name, whole, tokenizer)]
    return Group(*parts)


def prompts_view(
    tokenizer: Any, rows: Sequence[PromptRow], *, whole: bool
) -> RenderableType:
    """Returns prompts token by token; ``whole`` as of ``rows_view``."""
    parts: list[RenderableType] = []
    for row in rows:
        tokens = [ShownToken(t, "prompt") for t in token_texts(tokenizer, row.ids)]
        parts += [Text(), Text(row.origin, style="bold")]
        parts += [Text(f"{len(tokens)} tokens", style="dim")]
        parts += [_tokens(tokens, "chosen", whole, tokenizer)]
    return Group(*parts[1:])


def _tokens(tokens: list[ShownToken], name: str, whole: bool, tokenizer: Any) -> Text:
    colour = "green" if name == "chosen" else "red"
    line, special = Text(), set(tokenizer.all_special_tokens)
    for part in ("prompt", "completion"):
        some = [token for token in tokens if token.part == part]
        hidden = 0 if whole else max(0, len(some) - 2 * _SHOWN)
        style = colour if part == "completion" else "dim"
        for number, token in enumerate(some):
            if hidden and _SHOWN <= number < len(some) - _SHOWN:
                if number == _SHOWN:
                    line.append(f"… {hidden:,} more … ", style="italic")
                continue
            line.append(
                mark(token), f"bold {style}" if token.text in special else style
            )
            line.append(" ")
    padding = sum(token.part == "padding" for token in tokens)
    return line.append(f"· x {padding}", style="dim") if padding else line


def some_rows(rows: Sequence[Any], lines: Sequence[int], count: int) -> list[Any]:
    """Returns the rows of some lines or, without lines, ``count`` from all over."""
    if lines:
        return [row for row in rows if place_of(row.origin).number in lines]
    count = min(count, len(rows))
    return [rows[n * (len(rows) - 1) // max(count - 1, 1)] for n in range(count)]
