"""What stands at the head of a page, and its tables, as text."""

import math
import time
from collections.abc import Mapping
from typing import Any

from tpmm_jax.config import flatten
from tpmm_jax.log.metrics import METRICS
from tpmm_jax.log.progress import clock_text
from tpmm_jax.log.versions import changed_versions
from tpmm_jax.losses import title_of
from tpmm_jax.report.figures import theta
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.panels import PREVIOUS
from tpmm_jax.report.watched import looked_at
from tpmm_jax.rewards import stored_scorer

Row = dict[str, Any]
# Of a row: where it stands, not what was measured.
_PLACE = {"kind", "iteration", "watch"}


def number_text(value: float, digits: int = 3) -> str:
    """Returns a number with so many significant digits, "–" for nan."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}".replace("-", "−")
    text = f"{value:.{digits}g}"
    if "e" not in text and value != 0:
        text = f"{value:#.{digits}g}".rstrip(".")  # with the zeros at its end
    return text.replace("-", "−")


def interval_text(run: RunData, row: Row, name: str, *, percent: bool = False) -> str:
    """Returns a metric's interval as "0.89 to 0.97"; "" where there is none."""
    low, high = run.interval(row, name)
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{_share(low, percent)} to {_share(high, percent)}"


def _share(value: float, percent: bool) -> str:
    if not percent or not math.isfinite(value):
        return number_text(value)
    return f"{value:.1%}".replace("%", "\u00a0%")


def tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Returns the headline numbers of the last iteration: (title, value, note).

    A value is such as "0.54 → 0.93", a note its interval or unit.
    """
    if not run.iterations:
        return []
    last, first = run.last, run.iterations[0]
    t = last["iteration"]
    found = []
    reward = run.number(last, "reward/mean")
    if not math.isnan(reward):
        text, note = number_text(reward), _with_interval(run, last, "reward/mean")
        if first["iteration"] == 0 and t > 0:
            text = f"{number_text(run.number(first, 'reward/mean'))} → {text}"
            before = interval_text(run, first, "reward/mean")
            after = interval_text(run, last, "reward/mean")
            note = f"95\u00a0%: {before} → {after}" if before and after else ""
        title = f"Reward, {theta(0)} → {theta(t)}" if t > 0 else f"Reward, {theta(0)}"
        found.append((title, text, note))
    for name, title in (
        ("win/theta_0", f"Win rate against {theta(0)}"),
        ("win/previous", f"Win rate against {theta(max(t - 1, 0))}"),
        ("heldout/accuracy", "Held-out accuracy"),
    ):
        value = run.number(last, name)
        if not math.isnan(value):
            note = _with_interval(run, last, name, percent=True)
            found.append((title, _share(value, True), note))
    kl = run.number(last, "kl/theta_0")
    if not math.isnan(kl) and t > 0:
        interval = _with_interval(run, last, "kl/theta_0")
        note = ", ".join(filter(None, ("nats per response", interval)))
        found.append((f"KL to {theta(0)}", number_text(kl), note))
    return found


def _with_interval(run: RunData, row: Row, name: str, *, percent: bool = False) -> str:
    text = interval_text(run, row, name, percent=percent)
    return text and f"95\u00a0%: {text}"


def headline(run: RunData) -> str:
    """Returns what was run, in a line; only what the files say."""
    config = flatten(run.config)
    model, rule = config.get("model.source"), config.get("reference.rule")
    done = run.last.get("iteration") or config.get("iterations")
    parts = [
        f"{_loss(config)} on {model}" if model and config.get("loss.name") else model,
        f"against the reference {rule}" if rule else "",
        f"{done} iteration{'' if done == 1 else 's'}" if done else "",
    ]
    return ", ".join(str(part) for part in parts if part)


def described(run: RunData) -> list[tuple[str, str]]:
    """Returns (name, value) of what was run; only what the files say."""
    config = flatten(run.config)

    def of(name: str) -> str:
        value = config.get(name)
        return "" if value is None else str(value)

    rule = of("reference.rule")
    if rule == "learned":
        per = {"model": "checkpoint", "layer": "checkpoint and layer"}
        granularity = of("reference.granularity")
        rule += f", one weight per {per.get(granularity, granularity)}"
        rule += f", {of('reference.objective')}"
    training = ""
    if of("loss.name"):
        training = (
            f"{_loss(config)}, beta {of('loss.beta')}, learning rate "
            f"{of('train.learning_rate')}, {of('train.batch_size')} pairs per step, "
            f"{of('train.epochs')} epoch{'s' * (config['train.epochs'] != 1)}"
        )
    asked = ""
    if of("evaluation.num_prompts") and run.sets():
        each = of("evaluation.samples_per_prompt")
        # There may be fewer than were asked for.
        answered = len(run.samples(run.last["iteration"]))
        asked = f"{answered or of('evaluation.num_prompts')} prompts, {each} "
        asked += "sample each" if each == "1" else "samples each"
    devices = run.sessions[-1].get("devices", "") if run.sessions else ""
    scorer = stored_scorer(run.config.get("scorer")).title
    found = [
        ("model", of("model.source")),
        ("reference", rule),
        ("training", training),
        ("data", of("data.prompts") or of("data.pairs")),
        ("labelled by", scorer and scorer + earlier_labels(run)),
        ("evaluation", asked),
        ("margins", of("madpo.margins")),
        ("iterations", progress(run)),
        ("devices", str(devices)),
        ("computing time", _seconds(run)),
        ("workdir", str(run.workdir)),
    ]
    flips = config.get("pairing.flip_probability")
    if isinstance(flips, (int, float)) and flips > 0:
        found.insert(5, ("noise", f"{flips:.0%} of the labels were flipped on purpose"))
    return [(name, value) for name, value in found if value]


def earlier_labels(run: RunData) -> str:
    """Returns which iterations an earlier version of the scorer labelled, if any."""
    marked = [r["iteration"] for r in run.iterations if r.get("labels/earlier_scorer")]
    if not marked:
        return ""
    which = ", ".join(map(str, marked))
    return (
        f"; an earlier version of it labelled iteration{'s' * (len(marked) > 1)} "
        f"{which}. All evaluations are by the version of now"
    )


def _loss(config: Mapping[str, Any]) -> str:
    """Returns the loss, or the losses of a sum, in words."""
    name, mean = config["loss.name"], config.get("loss.length_normalized", True)
    names = [name] if isinstance(name, str) else name
    return " + ".join(title_of(str(one), mean) for one in names)


def progress(run: RunData) -> str:
    """Returns such as "2 of 4 finished"."""
    done, planned = run.last.get("iteration", "none"), run.config.get("iterations", "?")
    if isinstance(done, int) and isinstance(planned, int) and done > planned:
        return f"{done} finished, {planned} asked for"
    return f"{done} of {planned} {f'in {METRICS}' if run.lost else 'finished'}"


def missing(run: RunData) -> str:
    """Returns what metrics.jsonl has lost of evaluated iterations, and what to do."""
    if not run.lost:
        return ""
    many = len(run.lost) > 1
    which = ", ".join(map(str, run.lost))
    return (
        f"iteration{'s' if many else ''} {which} {'were' if many else 'was'} "
        f"evaluated, but {METRICS} has no row for {'them' if many else 'it'}: removed "
        "or cut off. Restore the file from a copy, or run the same training command "
        "again, which puts the rows back from the iterations' own files"
    )


def unfinished(run: RunData) -> bool:
    """Whether iterations are missing that the config asks for."""
    planned = run.config.get("iterations")
    done = max([run.last.get("iteration", -1), *run.lost])
    return isinstance(planned, int) and done < planned


def _seconds(run: RunData) -> str:
    of_first = [
        r for r in run.timing if r["kind"] == "evaluation" and r["iteration"] == 0
    ]
    rows = [r for r in run.timing if r["kind"] == "iteration"] + of_first
    seconds = sum(run.seconds(row) for row in rows)
    return clock_text(seconds) if seconds else ""


def metric_table(run: RunData) -> list[tuple[str, list[str]]]:
    """Returns (metric, a cell an iteration) of everything the rows hold."""
    names = {*run.names()} - _PLACE
    found = []
    for name in sorted(names):
        stem, _, end = name.rpartition("/")
        if end in ("low", "high") and {stem, f"{stem}/mean"} & names:
            continue  # stands in brackets
        cells = [_cell(run, row, name) for row in run.iterations]
        found.append((name, cells))
    return found


def _cell(run: RunData, row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, (str, list)):
        return str(value)
    if isinstance(value, int):
        text = f"{value:,}".replace("-", "−")
    else:
        text = number_text(float(value), 4)
    interval = interval_text(run, row, name)
    return f"{text} ({interval})" if interval else text


def sessions(run: RunData) -> list[dict[str, str]]:
    """Returns the starts of a run: when, what, command, devices, changed (versions)."""
    found = []
    before: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for row in run.sessions:
        versions, sources = (_mapping(row.get(k)) for k in ("versions", "sources"))
        changed = changed_versions(before, versions)
        changed += [
            f"the source of {name}"
            for name in sources
            if files.get(name, sources[name]) != sources[name]
        ]
        before, files = versions or before, sources or files
        what = "resumed" if row.get("resumed") else "started"
        coming, wanted = row.get("next_iteration"), row.get("iterations")
        if isinstance(coming, int):
            done = isinstance(wanted, int) and coming > wanted
            what += f", all {wanted} finished" if done else f" at iteration {coming}"
        if isinstance(row.get("rescored"), list) and row["rescored"]:
            what += f", rated again: {', '.join(map(str, row['rescored']))}"
        found.append(
            {
                "when": moment(row.get("time")), "what": what,
                "command": str(row.get("command", "")),
                "devices": str(row.get("devices", "")), "changed": ", ".join(changed),
            }
        )  # fmt: skip
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def versions(run: RunData) -> list[tuple[str, str]]:
    """Returns (name, version) of the last start."""
    for row in reversed(run.sessions):
        if isinstance(row.get("versions"), dict):
            return [(str(k), str(v)) for k, v in row["versions"].items()]
    return []


def moment(seconds: Any) -> str:
    """Returns seconds since the epoch as UTC, "" for anything else."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):
        return ""


def summary(run: RunData, at: int | None) -> dict[str, str]:
    """Returns a run's row of the comparison, by the heads of its columns.

    Args:
      at: the iteration that is compared; None: the run's last.
    """
    rows = [row for row in run.iterations if at is None or row["iteration"] <= at]
    last = rows[-1] if rows else {}
    reward = [
        number_text(run.number(row, "reward/mean"))
        for row in rows[:: max(1, len(rows) - 1)]
        if "reward/mean" in row
    ]
    shown = {row["iteration"] for row in rows}
    warnings = [text for t, text in run.warnings() if t in shown]
    return {
        "reference": str(run.config.get("reference", {}).get("rule", "–")),
        "iterations": progress(run),
        "reward": " → ".join(reward) or "–",
        f"win rate against {theta(0)}": _share(run.number(last, "win/theta_0"), True),
        f"against {PREVIOUS}": _share(run.number(last, "win/previous"), True),
        "KL": number_text(run.number(last, "kl/theta_0")),
        "held out": _share(run.number(last, "heldout/accuracy"), True),
        "warnings": str(len(warnings)) if looked_at(run) or warnings else "–",
    }
