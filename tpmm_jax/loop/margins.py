"""The rewards' margins of an iteration's pairs: rated, signed, calibrated, used."""

import datetime
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tpmm_jax.config import Config
from tpmm_jax.data.records import LabelledPair, Rollout
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.evaluation import fit_temperature
from tpmm_jax.loop.run import Disk, Plan
from tpmm_jax.loop.voice import Voice
from tpmm_jax.losses import LossConfig
from tpmm_jax.losses.madpo import weight
from tpmm_jax.rewards import (
    COLUMN,
    LABEL,
    MARGINS,
    NamedScorer,
    Raters,
    ScorerConfig,
)
from tpmm_jax.scoring import load_scorer
from tpmm_jax.store.digests import is_finished, read_listed_json, write_listed_json

# What the run divides its margins by.
CALIBRATION = "margins.json"
# Held-out pairs from which on a temperature is fitted.
ENOUGH = 32


def load_margins(config: Config, mesh: Mesh, date: datetime.date) -> NamedScorer | None:
    """Returns what rates answers for their margins; None without it, or of a column."""
    name, options = config.madpo.margins, config.madpo.options
    if name is None or name == COLUMN:
        return None
    labels = config.scorer
    given = ScorerConfig(
        name=name, options=options, timeout=labels.timeout, retries=labels.retries
    )
    return load_scorer(given, field=MARGINS, judge=config.judge, mesh=mesh, date=date)


def same_source_warning(config: Config, raters: Raters) -> str:
    """Returns a warning that the scorer's own margins say nothing new, or ""."""
    scorer, source = raters.scorer, raters.margins
    if config.offline or scorer is None or source is None:
        return ""
    if len(config.scorer.names) > 1:
        named = config.madpo.margins in config.scorer.names
        if not named and source.digest not in scorer.models:
            return ""
        return (
            f"{MARGINS} is one of the scorers that label: its margins agree with most "
            "labels whether they are right or not; give a source of their own"
        )
    if config.scorer.length_penalty:
        return ""
    # Clipped or normalised, it still orders any two answers as the source does.
    labels = config.scorer.names, dict(config.scorer.options)
    same = labels == ((config.madpo.margins,), dict(config.madpo.options))
    if not same and source.digest not in scorer.models:
        return ""
    return (
        f"{MARGINS} is the scorer that labels: every pair that was not flipped has a "
        "margin above 0, so MADPO's weights are at most 1.42, and dropping or "
        "relabelling changes only flipped pairs; give a source of their own"
    )


def rated_margin(row: Rollout, chosen: int, rejected: int) -> float | None:
    """Returns the margin of two answers that the margins' source rated, as it is."""
    scores = row.scores.get(LABEL)
    return None if scores is None else scores[chosen] - scores[rejected]


def use_margins(
    plan: Plan, disk: Disk, voice: Voice, iteration: int, pairs: list[LabelledPair]
) -> tuple[list[LabelledPair], dict[str, float]]:
    """Returns the pairs with calibrated margins, after the rule, and what to log.

    Args:
      pairs: with margins as their source gives them, signed by the final label.
    """
    config = plan.config
    temperature = read_temperature(plan, disk, voice, iteration, pairs)
    pairs = [replace(pair, margin=_margin(pair) / temperature) for pair in pairs]
    before = np.asarray([p.margin for p in pairs if not p.held_out])
    if text := zero_warning(before, iteration):
        voice.console.warn(text)
    pairs, changed = apply_rule(pairs, config.pairing.margins)
    values = {
        "margins/negative": float(np.mean(before < 0)) if len(before) else 0.0,
        "margins/size": float(np.mean(np.abs(before))) if len(before) else 0.0,
        "margins/temperature": temperature,
    }
    if config.pairing.margins != "keep":
        what = {"drop": "dropped", "relabel": "relabelled"}[config.pairing.margins]
        values[f"margins/{what}"] = changed
        voice.console.note(
            f"iteration {iteration}: {changed:,} of {len(before):,} training pairs "
            f"{what}, their margin is negative"
        )
    kept = np.asarray([p.margin for p in pairs if not p.held_out])
    if config.loss.needs_margins and len(kept):
        values |= weight_summary(config.loss, kept)
        voice.console.note(
            f"iteration {iteration}: MADPO: mean weight {values['madpo/weight']:.2f}, "
            f"as good as {values['madpo/effective_pairs']:,.0f} of {len(kept):,} "
            f"pairs, |h| above tau in {values['madpo/above_tau']:.0%}"
        )
    return pairs, values


def zero_warning(margin_P: np.ndarray, iteration: int) -> str:
    """Returns a warning that most margins say nothing, or ""."""
    zero = int(np.sum(margin_P == 0))
    if zero <= len(margin_P) / 2:
        return ""
    return (
        f"iteration {iteration}: {zero:,} of {len(margin_P):,} training pairs have the "
        f"margin 0 and are trained on as in DPO: {MARGINS} finds their answers equally "
        "good, or, where it is a judge, its replies cannot be read. Use a finer source"
    )


def apply_rule(
    pairs: Sequence[LabelledPair], rule: str
) -> tuple[list[LabelledPair], int]:
    """Returns the pairs after a rule of PairingConfig.margins, and how many it changed.

    "drop" leaves out training pairs of a negative margin, "relabel" exchanges their
    answers. Held-out pairs keep their labels, so that runs compare on them.
    """
    wrong = [not p.held_out and p.margin is not None and p.margin < 0 for p in pairs]
    if rule == "drop":
        return [pair for pair, bad in zip(pairs, wrong) if not bad], sum(wrong)
    if rule == "relabel":
        found = [_turned(pair) if bad else pair for pair, bad in zip(pairs, wrong)]
        return found, sum(wrong)
    return list(pairs), 0


def _turned(pair: LabelledPair) -> LabelledPair:
    assert pair.margin is not None
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_reward=pair.rejected_reward,
        rejected_reward=pair.chosen_reward,
        chosen_ids=pair.rejected_ids,
        rejected_ids=pair.chosen_ids,
        margin=-pair.margin,
        relabelled=True,
    )


def weight_summary(config: LossConfig, margin_P: np.ndarray) -> dict[str, float]:
    """Returns what MADPO's weights make of margins.

    madpo/effective_pairs is (sum w)^2 / sum w^2, the number of equal weights that
    estimate a mean as well.
    """
    given = {"c_max": config.c_max, "tau": config.tau, "lam": config.lam}
    weight_P = np.asarray(weight(margin_P.astype(np.float32), **given), np.float64)
    squares = float(np.sum(weight_P**2))
    return {
        "madpo/weight": float(np.mean(weight_P)),
        "madpo/effective_pairs": float(np.sum(weight_P)) ** 2 / squares
        if squares
        else 0,
        "madpo/above_tau": float(np.mean(np.abs(margin_P) > config.tau)),
    }


def _margin(pair: LabelledPair) -> float:
    if pair.margin is None or not np.isfinite(pair.margin):
        raise BadInput(
            f"{pair.origin or repr(pair.prompt[:60])} has the margin {pair.margin}; "
            f"{MARGINS} must give a finite number for every pair"
        )
    return pair.margin


def read_temperature(
    plan: Plan, disk: Disk, voice: Voice, iteration: int, pairs: list[LabelledPair]
) -> float:
    """Returns what the run divides its margins by; fits it in iteration 1."""
    if not plan.config.madpo.calibrate:
        return 1.0
    path = disk.workdir / CALIBRATION
    if is_finished(path):
        return _parse(path, read_listed_json(path))
    if iteration > 1:
        raise CorruptCheckpoint(
            f"{path} is missing: it holds the temperature of the margins of the first "
            "iterations; restore the file from a copy, or choose another --workdir"
        )
    held_P = np.asarray([_margin(p) for p in pairs if p.held_out], np.float64)
    record = _fit(held_P)
    say = voice.console.warn if _contradicts(record) else voice.console.note
    say(f"{MARGINS}: {_calibration_text(record)}")
    write_listed_json(path, record, replace=True)
    return record["temperature"]


def stored_temperature(workdir: pathlib.Path) -> float:
    """Returns what a run that has margins divides them by."""
    path = workdir / CALIBRATION
    return _parse(path, read_listed_json(path)) if path.exists() else 1.0


def _fit(held_P: np.ndarray) -> dict[str, Any]:
    """Returns the record of a calibration; its accuracy is missing of too few pairs."""
    record: dict[str, Any] = {"temperature": 1.0, "pairs": len(held_P)}
    if len(held_P) >= ENOUGH:
        found = fit_temperature(held_P)
        record["temperature"] = 1.0 if found is None else found
        record["accuracy"] = float(np.mean((held_P > 0) + 0.5 * (held_P == 0)))
        record["calibrated"] = found is not None
    return record


def _contradicts(record: Mapping[str, Any]) -> bool:
    return record.get("calibrated") is False


def _calibration_text(record: Mapping[str, Any]) -> str:
    pairs = f"{record['pairs']:,} held-out pairs of iteration 1"
    if "accuracy" not in record:
        return f"not calibrated: {pairs}, {ENOUGH} are needed"
    right = f"{record['accuracy']:.0%} of {pairs} have a margin of their label's sign"
    if _contradicts(record):
        return (
            f"not calibrated: {right}; margins no better than chance weigh pairs "
            "wrongly. Use another source"
        )
    return f"divided by {record['temperature']:.3g}: {right}"


def _parse(path: pathlib.Path, record: Any) -> float:
    found = record.get("temperature") if isinstance(record, dict) else None
    if not isinstance(found, float) or not 0 < found < float("inf"):
        raise CorruptCheckpoint(
            f"{path}: temperature is {found!r}; wanted a number above 0. Restore the "
            "file from a copy"
        )
    return found
