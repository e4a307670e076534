"""Judgements: each judge on the answers of two policies, in both orders."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpmm_jax.evaluation import judged_wins
from tpmm_jax.log.console import RunConsole
from tpmm_jax.rewards import NamedJudge
from tpmm_jax.store.files import append_lines, read_lines_repaired, write_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Match:
    """Answers of one policy against those of another, to the same prompts.

    Attributes:
      set: the prompts' name.
      against: the other policy's name.
      ours, theirs: rows of answers; sample s meets sample s.
    """

    set: str
    against: str
    ours: Sequence[Row]
    theirs: Sequence[Row]


def judge_rows(
    path: pathlib.Path | None,
    matches: Sequence[Match],
    judges: Mapping[str, NamedJudge],
    *,
    batch_size: int,
    console: RunConsole,
    check: Callable[[], None],
    title: str,
) -> list[Row]:
    """Returns a row an answer, in the order of matches, judges, prompts, samples.

    A row: set, judge, against, prompt, sample; first and second, the judge's share for
    the first text with ours first and with ours second; win. Rows are appended to
    ``path`` a batch at a time, and those that are there are not asked for again.

    Args:
      batch_size: prompts whose answers a judge gets at once.
    """
    batches = [
        (match, label, range(at, min(at + batch_size, len(match.ours))))
        for match in matches
        for label in judges
        for at in range(0, len(match.ours), batch_size)
    ]
    sizes = [len(m.ours[0]["responses"]) * len(places) for m, _, places in batches]
    ends = np.cumsum([0, *sizes]).tolist()
    lines = [] if path is None else read_lines_repaired(path)
    started = max(i for i, end in enumerate(ends) if end <= len(lines))
    if path is not None and ends[started] < len(lines):
        write_text(path, "".join(line + "\n" for line in lines[: ends[started]]))
    rows = [json.loads(line) for line in lines[: ends[started]]]
    if started == len(batches):
        return rows
    with console.phase(title, ends[-1], "answers") as bar:
        bar.advance(ends[started])
        for match, label, places in batches[started:]:
            batch = _judged(match, label, judges[label], places)
            if path is not None:
                append_lines(path, [json.dumps(row) for row in batch])
            rows += batch
            bar.advance(len(batch))
            check()
    return rows


def _judged(match: Match, label: str, judge: NamedJudge, places: range) -> list[Row]:
    spots = [(i, s) for i in places for s in range(len(match.ours[i]["responses"]))]
    prompts = [match.ours[i]["prompt"] for i, _ in spots]
    ours = [match.ours[i]["responses"][s] for i, s in spots]
    theirs = [match.theirs[i]["responses"][s] for i, s in spots]
    first_B, second_B = judge(prompts, ours, theirs), judge(prompts, theirs, ours)
    win_B = judged_wins(first_B[:, None], second_B[:, None])[:, 0]
    return [
        {
            "set": match.set,
            "judge": label,
            "against": match.against,
            "prompt": i,
            "sample": s,
            "first": float(first_B[b]),
            "second": float(second_B[b]),
            "win": float(win_B[b]),
        }
        for b, (i, s) in enumerate(spots)
    ]


def won(rows: Sequence[Row], name: str) -> dict[tuple[str, str], np.ndarray]:
    """Returns {(judge, against): wins [B, S]} of one set."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        if row["set"] == name:
            by_prompt = found.setdefault((row["judge"], row["against"]), {})
            by_prompt.setdefault(row["prompt"], []).append(row["win"])
    return {
        key: np.asarray([by_prompt[i] for i in sorted(by_prompt)])
        for key, by_prompt in found.items()
    }
