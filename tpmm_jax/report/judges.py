"""Plots of judges that go by the order, and of replies that cannot be read."""

from collections.abc import Sequence

from tpmm_jax.log.metrics import find_labels
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.panels import Panel, Section, family, prefixes

# End of a metric's name -> the plot's title and note.
_FAULTS = {
    "disagreed": (
        "Judges: the order decided",
        "This share of answers is better in one order and worse in the other.",
    ),
    "unread": (
        "Judges: replies that cannot be read",
        "They count as ties; the words are in judgements.jsonl.",
    ),
}


# Of a judge that labels.
_LABELS = {
    "labels/disagreed": "the order decided",
    "labels/unread": "replies that cannot be read",
}


def judge_sections(runs: Sequence[RunData]) -> list[Section]:
    """Returns the section of judges, where a run has them."""
    panels: list[Panel] = []
    named = [run.names() for run in runs]
    for prefix, of in prefixes(runs):
        for end, (title, note) in _FAULTS.items():
            labels = find_labels(named, f"{prefix}judge/", f"/{end}")
            names = {f"{prefix}judge/{label}/{end}": label for label in labels}
            whole = f"{title} ({labels[0]})" if len(labels) == 1 else title
            panels += family(runs, f"{whole}{of}", names, note, percent=True)
    note = "The judge that labels says so of the answers to one prompt."
    for name, title in _LABELS.items():
        panels += family(runs, f"Labels: {title}", {name: ""}, note, percent=True)
    return [Section("Judges", panels)] if panels else []
