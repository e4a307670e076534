"""Pools of answers to pick the best of n from: drawn, rated, and kept in a folder.

The folder's pools.json says how they were drawn and by whom they were rated. The same
command goes on where it stopped; other scorers rate the answers that are there again,
and nothing is drawn a second time.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import (
    Turn,
    best_of,
    curve_sizes,
    find_turn,
    kl_bound,
    mean_interval,
    name_interval,
    paired_interval,
)
from tpmm_jax.loop.compare import Candidate, Settings, answers_path, draw_pool
from tpmm_jax.loop.repeat import worst
from tpmm_jax.loop.rescoring import rate_file
from tpmm_jax.loop.voice import Voice
from tpmm_jax.rewards import SCORER, SCORERS, NamedScorer
from tpmm_jax.store import check_writable
from tpmm_jax.store.files import RunLock, read_json, sha256, write_json
from tpmm_jax.store.records import read_growing_records

NAME = "pools.json"


def check_folder(folder: pathlib.Path) -> None:
    """Refuses a folder that is neither new nor one of pools.

    Raises:
      BadInput: it holds something else.
      StorageError: the folder around it cannot be written.
    """
    if (folder / NAME).is_file():
        return
    if folder.exists():
        # A lock alone was left by a command that was stopped at its very start.
        names = {x.name for x in folder.iterdir()} if folder.is_dir() else {NAME}
        if names - {RunLock.FILE}:
            raise BadInput(
                f"{folder} is not empty and has no {NAME}; choose a new folder, or one "
                "that this command wrote before"
            )
    check_writable(folder.absolute().parent)


def draw_pools(
    candidates: Sequence[Candidate],
    settings: Settings,
    names: Mapping[str, str],
    voice: Voice,
) -> dict[str, list[Rollout]]:
    """Returns the rated pool of every policy, by its name.

    Args:
      names: {field of a scorer: the name that it goes by}, see ``rewards.SCORER``.

    Raises:
      BadInput: the folder's pools were drawn otherwise.
      Stopped: the same command goes on.
    """
    if settings.output is not None:
        settings.output.mkdir(exist_ok=True)
        _settle(candidates, settings, names, voice)
    return {one.name: draw_pool(settings, voice, one) for one in candidates}


def _settle(
    candidates: Sequence[Candidate],
    settings: Settings,
    names: Mapping[str, str],
    voice: Voice,
) -> None:
    """Makes pools.json say what is now, once what is there agrees with it."""
    assert settings.output is not None
    path = settings.output / NAME
    drawn: dict[str, Any] = dataclasses.asdict(settings.sampling)
    drawn |= {"samples": settings.num_samples, "seed": settings.seed}
    now = read_json(path) if path.exists() else {"drawn": drawn, "files": {}}
    _check_equal(path, "the pools were", now["drawn"], drawn)
    files = {one.name: _described(one) for one in candidates}
    for one in candidates:
        known = now["files"].get(_file(settings, one).name, files[one.name])
        _check_equal(path, f"{one.name} was", known, files[one.name])
    for one in candidates:
        file = _file(settings, one)
        known = now["files"].get(file.name, {}).get("raters", names)
        rows = read_growing_records(file, Rollout)
        if rows and (scorers := _changed_scorers(settings, names, known, one, rows)):
            # Until all are rated again none counts as rated by these.
            kept = {k: v for k, v in known.items() if k not in scorers}
            now["files"][file.name] = {**files[one.name], "raters": kept}
            write_json(path, now)
            listed = ", ".join(scorer.name for scorer in scorers.values())
            voice.console.note(f"{listed}: rates the answers that are there")
            size = settings.batch_size
            with voice.phase(f"{one.name}: rate", len(rows), "prompts") as advance:
                rate_file(file, one.codec, one.prompts, scorers, size, advance)
        now["files"][file.name] = {**files[one.name], "raters": dict(names)}
    write_json(path, now)


def _file(settings: Settings, candidate: Candidate) -> pathlib.Path:
    path = answers_path(settings, candidate)
    assert path is not None
    return path


def _described(candidate: Candidate) -> dict[str, Any]:
    """Returns what a file of answers is bound to."""
    prompts = sha256([candidate.prompts.texts, candidate.prompts.ids])
    return {"source": candidate.found.origin, "prompts": prompts}


def _check_equal(
    path: pathlib.Path, what: str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    differing = [k for k in now if before.get(k) != now[k]]
    if differing:
        said = ", ".join(f"{k} {before.get(k)}, now {now[k]}" for k in differing)
        raise BadInput(
            f"{path}: {what} drawn with {said}; give what it was drawn with, or a "
            "new folder (--output)"
        )


def _changed_scorers(
    settings: Settings,
    names: Mapping[str, str],
    before: Mapping[str, str],
    candidate: Candidate,
    rows: Sequence[Rollout],
) -> dict[str, NamedScorer]:
    """Returns by field the scorers that are new, or say other than they said."""
    raters, batch = settings.raters, rows[: settings.batch_size]
    now = {SCORERS + label: one for label, one in raters.scorers.items()}
    if raters.scorer is not None:
        now[SCORER] = raters.scorer
    texts = [row.prompt for row in batch], [row.responses for row in batch]
    ids = [row.response_ids for row in batch]
    known = candidate.prompts.known(candidate.codec, range(len(batch)), ids)
    found = {}
    for field, scorer in now.items():
        if before.get(field) == names[field]:
            said = np.asarray([_numbers(row, field) for row in batch], np.float64)
            if not worst(said, scorer(*texts, known)):
                continue
        found[field] = scorer
    return found


def _numbers(row: Rollout, field: str) -> list[float]:
    found = row.rewards if field == SCORER else row.scores[field.removeprefix(SCORERS)]
    assert found is not None
    return found


def measure_pools(
    pools: Mapping[str, Sequence[Rollout]], proxies: Sequence[str], n: int
) -> list[dict[str, Any]]:
    """Returns a curve of every policy by every proxy, up to the best of n.

    Args:
      pools: by policy; the gold score is each answer's "rewards".
      proxies: labels of further scorers.

    Returns:
      For each curve its policy, proxy, "rows", a row an n: "n", "kl_bound", and with
      their intervals over prompts "proxy", "gold", "gain" (gold minus that of one
      answer) and, but for the first curve, "lead" (gold minus the first curve's);
      "proxy_spread", the deviation within a prompt; "ties" and "repeats", shares of
      answers; where gold turns, as "turn" and "words".
    """
    sizes, curves, first_BS = curve_sizes(n), [], None
    for policy, pool in pools.items():
        gold_BN = np.asarray([row.rewards for row in pool], np.float64)
        for label in proxies:
            proxy_BN = np.asarray([row.scores[label] for row in pool], np.float64)
            gold_BS = best_of(proxy_BN, gold_BN, sizes)
            proxy_BS = best_of(proxy_BN, proxy_BN, sizes)
            turn = find_turn(gold_BS, sizes)
            curves.append(
                {
                    "policy": policy,
                    "proxy": label,
                    "same_as_gold": bool((proxy_BN == gold_BN).all()),
                    "proxy_spread": float(proxy_BN.std(axis=1).mean()),
                    "ties": _repeated(proxy_BN.tolist()),
                    "repeats": _repeated([row.responses for row in pool]),
                    "turn": _turn_row(turn),
                    "words": describe_turn(turn, n),
                    "rows": _rows(sizes, proxy_BS, gold_BS, first_BS),
                }
            )
            first_BS = gold_BS if first_BS is None else first_BS
    return curves


def _rows(
    sizes: Sequence[int],
    proxy_BS: np.ndarray,
    gold_BS: np.ndarray,
    first_BS: np.ndarray | None,
) -> list[dict[str, float]]:
    rows = []
    for s, n in enumerate(sizes):
        proxy_B1, gold_B1 = proxy_BS[:, [s]], gold_BS[:, [s]]
        row: dict[str, float] = {"n": n, "kl_bound": kl_bound(n)}
        row |= name_interval("proxy", mean_interval(proxy_B1))
        row |= name_interval("gold", mean_interval(gold_B1))
        if s > 0:
            row |= name_interval("gain", paired_interval(gold_B1, gold_BS[:, :1]))
        if first_BS is not None:
            row |= name_interval("lead", paired_interval(gold_B1, first_BS[:, [s]]))
        rows.append(row)
    return rows


def _repeated(rows: Sequence[Sequence[Any]]) -> float:
    """Returns the share of items that equal another one of their row."""
    more = sum(row.count(x) > 1 for row in rows for x in row)
    return more / sum(map(len, rows))


def _turn_row(turn: Turn) -> dict[str, Any]:
    row: dict[str, Any] = {
        "n": turn.best,
        "n/low": turn.earliest,
        "n/high": turn.latest,
    }
    row |= {"down": turn.down, "up": turn.up, "half": turn.half}
    row |= name_interval("fall", turn.fall)
    return row | name_interval("rise", turn.rise)


def describe_turn(turn: Turn, n: int) -> str:
    """Returns in words where gold turns down, or that it is not seen to."""
    best = turn.best
    at = f"n = {best} (KL at most {kl_bound(best):.2f} nats; 95 % of resamples: "
    same = turn.earliest == turn.latest
    at += "as well)" if same else f"n = {turn.earliest} to {turn.latest})"
    fall = _change(-turn.fall.mean, -turn.fall.high, -turn.fall.low)
    rise = _change(turn.rise.mean, turn.rise.low, turn.rise.high)
    if turn.down and best == 1:
        return f"gold falls from n = 1 on: at n = {n} it is lower by {fall}"
    if turn.down:
        return f"gold turns down after {at}: at n = {n} it is lower by {fall}"
    if turn.up:
        return f"gold still rises, from n = {turn.half} to {n} by {rise}"
    if best == n:
        return (
            f"gold is highest at n = {n} and not seen to turn down; from n = "
            f"{turn.half} on it rises by {rise}, which may be 0"
        )
    return (
        f"gold is not seen to turn down: it is highest at {at}, and lower at n = {n} "
        f"by {fall}, which may be 0"
    )


def _change(mean: float, low: float, high: float) -> str:
    if not np.isfinite([low, high]).all():
        return f"{mean:.3g} (too few prompts for an interval)"
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"
