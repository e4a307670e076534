"""The page of a reward run: its curves, its accuracy by set, pairs it gets wrong."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter

from tpmm_jax.evaluation import Bin, reliability
from tpmm_jax.log.compared import caption, compared_columns
from tpmm_jax.log.metrics import HELD_OUT_KIND
from tpmm_jax.log.rewards import columns
from tpmm_jax.log.routers import describe_routers
from tpmm_jax.merging import EXPERT_RULES
from tpmm_jax.report import figures
from tpmm_jax.report.figures import Curve
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.panels import Panel, Section
from tpmm_jax.report.routers import router_panels, weight_panels
from tpmm_jax.store.digests import read_listed, read_listed_json

KEPT = "reward"
# Pairs shown of each kind, and characters of a text.
SHOWN, MOST = 5, 600


@dataclass(frozen=True)
class RewardData:
    """What a reward run's files say beside its metrics.

    Attributes:
      summary: summary.json; {} of an unfinished run.
      pairs: lines of held_out.jsonl.
      routers: router.json; {} of a dense model.
      merges: by rule, what merged-RULE.json says.
    """

    summary: Mapping[str, Any]
    pairs: Sequence[Mapping[str, Any]]
    routers: Mapping[str, Any] = field(default_factory=dict)
    merges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def margins(self) -> np.ndarray:
        return np.array([p["chosen_reward"] - p["rejected_reward"] for p in self.pairs])


def is_reward_run(run: RunData) -> bool:
    """Whether the folder is one of tpmm train_reward."""
    return (run.workdir / KEPT).is_dir()


def read_rewards(run: RunData) -> RewardData:
    """Reads what the run has written at its end.

    Raises:
      CorruptCheckpoint: a file is not what was written.
    """
    folder = run.workdir / "iterations" / "001"
    if not (folder / "summary.json").exists():
        return RewardData({}, [])
    lines = read_listed(folder / "held_out.jsonl").decode().splitlines()
    pairs = [json.loads(line) for line in lines]
    path = folder / "router.json"
    routers = read_listed_json(path) if path.exists() else {}
    summary = read_listed_json(folder / "summary.json")
    records = {rule: folder / f"merged-{rule}.json" for rule in EXPERT_RULES}
    merges = {r: read_listed_json(p) for r, p in records.items() if p.exists()}
    return RewardData(summary, pairs, routers, merges)


def table(found: RewardData) -> list[tuple[str, list[str]]]:
    """Returns (title, a cell a set) of the measures."""
    return list(columns(found.summary["sets"]).items()) if found.summary else []


def compared_table(found: RewardData) -> list[tuple[str, list[str]]]:
    """Returns (title, a cell a set and model) of a mixture and what it merges into."""
    compared = found.summary.get("compared", {})
    return list(compared_columns(compared).items()) if compared else []


def compared_note(found: RewardData) -> str:
    """Returns what has to be known of that table."""
    compared = found.summary.get("compared", {})
    return caption(compared).replace("\n", " ") if compared else ""


def facts(run: RunData, found: RewardData) -> list[tuple[str, str]]:
    """Returns what was trained, in words."""
    config, summary = run.config, found.summary
    model, train = config.get("model", {}), config.get("train", {})
    rank = model.get("lora", {}).get("rank", 0)
    rows = [
        ("model", str(model.get("source", "–"))),
        ("trained", f"LoRA of rank {rank} and the head" if rank else "all weights"),
        ("data", _source(config.get("data", {}))),
        ("learning rate", f"{train.get('learning_rate', math.nan):g}"),
    ]
    if summary:
        shared = {k: n for k, n in summary["shared_prompts"].items() if n}
        temperature = summary["temperature"]
        rows += [
            ("training pairs", f"{summary['pairs']:,}"),
            ("best model", f"after step {summary['step']} of {summary['steps']}"),
            ("temperature", "none" if temperature is None else f"{temperature:.3g}"),
        ]
        if found.routers:
            rows.append(("routed experts", describe_routers(found.routers)))
        rows += [("note", f"{n} pairs of {k} share a prompt with training")
                 for k, n in shared.items()]  # fmt: skip
    return rows


def _source(data: Mapping[str, Any]) -> str:
    return str(data.get("pairs") or data.get("ratings") or data.get("rollouts") or "–")


def sections(run: RunData, found: RewardData) -> list[Section]:
    """Returns every section of the page that has a plot."""
    made = [Section("Training", _training(run) + _held_out(run))]
    made.append(Section("Routed experts", experts(run, found)))
    if found.pairs:
        made.append(Section("Held-out pairs", _pairs(found)))
    return [section for section in made if section.panels]


def experts(run: RunData, found: RewardData) -> list[Panel]:
    """Returns the plots of a mixture's routers, experts and merge weights."""
    return router_panels(run, found.routers) + weight_panels(
        found.routers, found.merges
    )


def _training(run: RunData) -> list[Panel]:
    rows, made = [row for row in run.metrics if row["kind"] == "train"], []
    names = (("Training loss", "loss", False), ("Training accuracy", "accuracy", True))
    for title, name, percent in names:
        points = [(1, run.number(row, name)) for row in rows if name in row]
        if points:
            svg, size = figures.by_step(
                points, percent=percent, xlabel="optimizer step"
            )
            note = f"Each point is the mean of {size} steps." if size > 1 else ""
            made.append(Panel(title, note, [], svg))
    return made


def _held_out(run: RunData) -> list[Panel]:
    """Loss and accuracy of every set at each evaluation."""
    rows, made = [r for r in run.metrics if r["kind"] == HELD_OUT_KIND], []
    names = dict.fromkeys(n for row in rows for n in row if n.endswith("/accuracy"))
    sets = [n.removesuffix("/accuracy") for n in names if n.count("/") == 1]
    sets.sort(key=lambda name: name != "heldout")
    kinds = (("Loss", "loss", False), ("Accuracy", "accuracy", True))
    for title, name, percent in kinds:
        curves = []
        for of_set in sets:
            full = f"{of_set}/{name}"
            low, high = zip(*(run.interval(row, full) for row in rows))
            curves.append(
                Curve(
                    "held-out" if of_set == "heldout" else of_set,
                    [row["step"] for row in rows],
                    [run.number(row, full) for row in rows],
                    low if percent else (),
                    high if percent else (),
                )
            )
        if curves:
            note = (
                "The chosen answer has the higher reward in this share of the pairs; "
                "the dashed line is chance. The bars are 95\u00a0% intervals over "
                "prompts."
                if percent
                else "Loss is −log σ(margin) in nats; chance is 0.693."
            )
            svg = figures.by_iteration(curves, share=percent, xlabel="optimizer step")
            made.append(Panel(f"{title} of the test sets", note,
                              [c.label for c in curves], svg))  # fmt: skip
    return made


def _pairs(found: RewardData) -> list[Panel]:
    margin_P = found.margins
    lengths, rewards = (
        np.array([[p[f"chosen_{name}"], p[f"rejected_{name}"]] for p in found.pairs])
        for name in ("length", "reward")
    )
    temperature = found.summary["temperature"]
    curves = {"as trained": reliability(margin_P)}
    if temperature is not None:
        label = f"at temperature {temperature:.3g}"
        curves[label] = reliability(margin_P / temperature)
    return [
        Panel(
            "Reliability",
            "So often pairs of like confidence are right; on the dashed line the model "
            "is as sure as it should be. Bins hold equally many pairs.",
            list(curves),
            reliability_plot(curves),
        ),
        Panel(
            "Margins",
            "It is the reward of chosen minus that of rejected; right of 0 the model "
            "agrees.",
            [],
            figures.histogram({"margin": margin_P}, xlabel="margin"),
        ),
        Panel(
            "Reward against length",
            "A model that has learned length only shows a slope and one colour.",
            ["chosen", "rejected"],
            length_plot(rewards, lengths),
        ),
    ]


def reliability_plot(curves: Mapping[str, Sequence[Bin]]) -> Markup:
    """Draws shares of right pairs over confidence."""
    with figures.plot() as (figure, axes):
        axes.plot([0.5, 1], [0.5, 1], **figures.guide())
        for index, curve in enumerate(curves.values()):
            x, y = [b.confidence for b in curve], [b.accuracy for b in curve]
            axes.plot(x, y, **figures.style(index), markersize=4.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
        axes.set_xlabel("confidence")
        axes.set_ylabel("right")
        return figures.finished(figure)


def length_plot(rewards_PN: np.ndarray, lengths_PN: np.ndarray) -> Markup:
    """Draws the reward of up to 500 pairs' answers over their length."""
    every = max(1, math.ceil(len(rewards_PN) / 500))
    with figures.plot() as (figure, axes):
        for index in (0, 1):
            style = figures.style(index) | {"linestyle": "", "alpha": 0.45}
            x, y = lengths_PN[::every, index], rewards_PN[::every, index]
            axes.plot(x, y, **style, markersize=3.5)
        axes.set_xlabel("tokens of the answer")
        axes.set_ylabel("reward")
        return figures.finished(figure)


def examples(found: RewardData) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns (heading, pairs): the most wrong ones, and some as they come."""
    if not found.pairs:
        return []
    order = np.argsort(found.margins, kind="stable")
    wrong = [int(i) for i in order[:SHOWN] if found.margins[i] < 0]
    spread = np.linspace(0, len(order) - 1, min(SHOWN, len(order)))
    some = [int(i) for i in dict.fromkeys(spread.round().astype(int).tolist())]
    groups = (("The most wrong", wrong), ("Evenly through the file", some))
    return [
        (title, [_shown(found.pairs[place]) for place in places])
        for title, places in groups
        if places
    ]


def _shown(pair: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: pair[name] for name in ("prompt", "chosen", "rejected")}
    cut = {name: t if len(t) <= MOST else t[:MOST] + " …" for name, t in texts.items()}
    return {**pair, **cut, "margin": pair["chosen_reward"] - pair["rejected_reward"]}
