"""The model card (README.md) of an exported policy: how it was made, what was measured.

It says what the run's own files say, and nothing of the machine: local paths are cut
to their last part.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from tpmm_jax.errors import BadInput
from tpmm_jax.log.escapes import printable
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.losses import title_of
from tpmm_jax.rewards import stored_scorer
from tpmm_jax.scoring import JUDGE, REWARD
from tpmm_jax.store import Trajectory, read_json, read_lines_repaired
from tpmm_jax.store.digests import read_listed_json
from tpmm_jax.weights.hub import POLICY, TRAJECTORY_STEP
from tpmm_jax.weights.kept import LEARNED, committed_steps, weights_of_mean

# Heading and key of a row of kind "iteration"; an interval is KEY/low, KEY/high, but
# that of a mean stands beside it.
COLUMNS = (
    ("reward", "reward/mean"),
    ("win rate against theta_0", "win/theta_0"),
    ("win rate against the previous policy", "win/previous"),
    ("held-out accuracy", "heldout/accuracy"),
    ("KL to theta_0, nats", "kl/theta_0"),
    ("length, tokens", "length/mean"),
)
# What metrics of the mean of the policies begin with.
OF_MEAN = "ship/"

TEMPLATE = """\
---
library_name: {{ library }}
pipeline_tag: text-generation
tags:
{%- for tag in tags %}
- {{ tag | tojson }}
{%- endfor %}
{%- if base_model %}
base_model: {{ base_model | tojson }}
{%- endif %}
{%- if license %}
license: {{ license | tojson }}
{%- endif %}
---

# {{ name | cell }}

{% if lora -%}
A LoRA adapter of rank {{ lora.rank }} for a {{ family }} model of {{ parameters }}
parameters. Written by tpmm_jax.

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
{% else -%}
{{ parameters }} parameters, {{ family }}, weights in {{ dtype }}. Written by tpmm_jax.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
{% endif %}
tokenizer = AutoTokenizer.from_pretrained({{ name | tojson }})
model = {{ reader }}.from_pretrained({{ name | tojson }})
```
{% if chat %}
The tokenizer has a chat template.
{% endif %}
## How it was made

{% if run -%}
{% if run.mean -%}
The mean of the policies 0 to {{ run.step }}, weights of
{%- if run.mean.weights %} {{ run.mean.weights }} (fitted on held-out
samples and their rewards),{% else %} equal share,{% endif %} of a run of
{%- else -%}
Policy {{ run.step }} of a run of
{%- endif %} {{ [run.step, run.config.iterations] | max }}
iterations of preference optimisation ({{ run.loss }} loss) from {{ run.first }}.
In each iteration {% if run.scorer and not run.offline -%}
the policy answered prompts, `{{ run.scorer | code }}` labelled pairs of answers,
{%- else -%}
a part of a preference set was taken,
{%- endif %}
and the policy was trained {% if run.rule == "none" -%}
without a reference.
{%- else -%}
against a reference chosen by the rule `{{ run.rule | code }}`.
{%- endif %}
{% if run.rule == "learned" %}
The reference is a weighted merge of all earlier policies, as in TPMM-DPO
(arXiv 2605.23398). The fusion objective that the weights were learned with is our
reconstruction: the paper's is not public.
{% endif %}
{%- if run.references %}
| iteration | rule | weights of theta_0, theta_1, ... in the reference |
|---|---|---|
{%- for row in run.references %}
| {{ row.iteration }} | {{ row.rule | cell }} | {{ row.weights }} |
{%- endfor %}
{% endif %}
## Evaluation

{% if run.mean -%}
The rows are those of the single policies.
{%- if not run.mean.evaluated %} The run did not evaluate this mean.{% endif %}

{% endif -%}
{% if run.table -%}
| {{ run.headings | join(" | ") }} |
|{% for _ in run.headings %}---|{% endfor %}
{%- for row in run.table %}
| {{ row | join(" | ") }} |
{%- endfor %}

In brackets: 95 % intervals over prompts.
{%- if run.scorer and run.rewarded %}
The reward is `{{ run.scorer | code }}`{% if run.offline %};
it labelled no training pair.
{%- else %},
which also labelled the training pairs: it is what was optimised.
{%- if run.earlier %}
An earlier version of it labelled the pairs of
iteration{{ "s" if run.earlier | length > 1 }} {{ run.earlier | join(", ") }}.
{%- endif %}
{%- endif %}
{%- endif %}
{%- else -%}
The run has no evaluation of this policy.
{%- endif %}
{% if run.more %}
| further measurement of policy {{ run.step }} | value |
|---|---|
{%- for key, value in run.more %}
| {{ key | cell }} | {{ value }} |
{%- endfor %}
{% endif %}
{% if run.of_mean %}
| {{ run.of_mean_title }} | value |
|---|---|
{%- for key, value in run.of_mean %}
| {{ key | cell }} | {{ value }} |
{%- endfor %}
{% endif %}
{%- for text in run.watch %}
**Warning of the reward-hacking watch, of policy {{ run.step }}:** {{ text | cell }}
{% endfor %}
{% set kept = "policy" -%}
"""
# Ends the card of what a run trained; "kept" says what that is.
PROVENANCE = """\
## Provenance

| | |
|---|---|
| {{ kept }} | `{{ digest }}` |
{%- for key, value in run.data %}
| {{ key }} | `{{ value | code }}` |
{%- endfor %}
{%- for key, value in versions %}
| {{ key | cell }} | {{ value | cell }} |
{%- endfor %}

The digests are SHA-256 sums of fingerprints of the weights, and of the data's tokens.
The configuration of the run:

```json
{{ run.config_text }}
```
"""
# Of a model that no run trained: one of experts, a merge of others, or one that was
# converted.
ORIGIN = """\
{% elif experts -%}
{{ experts }}
{% elif merge -%}
A merge of {{ merge.rows | length }} checkpoints in float32, by
{{ merge.rule | cell }} weights.
{% if merge.rule == "learned" %}
The weights were learned on preference pairs. The objective is our reconstruction of
TPMM-DPO's (arXiv 2605.23398), which is not public.
{% endif %}
| checkpoint | weight | digest |
|---|---|---|
{%- for row in merge.rows %}
| {{ row.source | cell }} | {{ row.weight }} | `{{ row.digest | code }}` |
{%- endfor %}
{% else -%}
Converted from {{ source | cell }}
{%- if commit %} at commit `{{ commit | code }}`{% endif %}, without training.

| | |
|---|---|
| weights | `{{ digest }}` |
{%- for key, value in versions %}
| {{ key | cell }} | {{ value | cell }} |
{%- endfor %}
{% endif -%}
"""


def run_facts(source: str) -> dict[str, Any] | None:
    """Returns what is known of a run's policy by its name, or None for other models.

    TEMPLATE names it "run"; "first_hub" is the hub id that the run began with.

    Keys and files that the run does not have (it is older, or offline) are left out.
    """
    named = POLICY.fullmatch(source)
    match = named or TRAJECTORY_STEP.fullmatch(source)
    if match is None:
        return None
    workdir = pathlib.Path(match["workdir"] or ".")
    step = int(match["step"] or committed_steps(workdir)[-1])
    config = run_config(workdir)
    with Trajectory(workdir / "trajectory", read_only=True) as trajectory:
        meta = trajectory.meta(0)
        digests = [("theta_0", trajectory.digest(0))]
    first, hub = first_model(config, meta)
    rows = [row for row in iteration_rows(workdir) if row["iteration"] <= step]
    headings, table = evaluation_table(rows)
    last = next((row for row in rows if row["iteration"] == step), {})
    data = workdir / "data.json"
    if data.exists():
        pinned = read_listed_json(data)
        digests += [
            (name, pinned[name]) for name in ("pairs", "prompts") if pinned[name]
        ]
    rated = any(key.startswith(OF_MEAN) for key in last)
    ship = LEARNED if config.get("ship") == LEARNED else "mean"
    shipped = weights_of_mean(workdir, ship, step) if rated else None
    weighted = "weighted " if len({*(shipped or {}).values()}) > 1 else ""
    loss, mean = config["loss"]["name"], config["loss"].get("length_normalized", True)
    losses = [loss] if isinstance(loss, str) else loss  # or a sum of them
    return {
        "step": step,
        "of_mean_title": f"the {weighted}mean of the policies 0 to {step}",
        "mean": None if named is None else _mean(workdir, named["name"], step, shipped),
        "config": config,
        "config_text": json.dumps(without_paths(config), indent=2, sort_keys=True),
        "loss": " + ".join(title_of(name, mean) for name in losses),
        "rule": config["reference"]["rule"],
        "scorer": stored_scorer(without_paths(config.get("scorer") or {})).title,
        "rewarded": any("reward/mean" in row for row in rows),
        "earlier": [r["iteration"] for r in rows if r.get("labels/earlier_scorer")],
        "offline": bool((config.get("data") or {}).get("pairs")),
        "first": first,
        "first_hub": hub,
        "references": references(workdir, step),
        "headings": headings,
        "table": table,
        "more": [x for x in further(last) if not x[0].startswith(OF_MEAN)],
        "of_mean": [
            (key.removeprefix(OF_MEAN), value)
            for key, value in further(last)
            if key.startswith(OF_MEAN)
        ],
        "watch": list(last.get("watch", ())),
        "data": digests,
        "versions": run_versions(workdir),
    }


def run_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns a run's config.json."""
    if not (workdir / "config.json").exists():
        raise BadInput(
            f"{workdir} has no config.json, so the model card cannot say how the "
            "model was made; put the run's file back"
        )
    return read_json(workdir / "config.json")


def first_model(
    config: Mapping[str, Any], meta: Mapping[str, Any]
) -> tuple[str, str | None]:
    """Returns what a run began with as Markdown, and its hub id, if it has one.

    Args:
      meta: of step 0.
    """
    origin = str(meta.get("source", config["model"]["source"]))
    hub = origin if meta.get("commit") else None
    first = cell(local_name(origin))
    return first + (f" at `{code(meta['commit'][:12])}`" if hub else ""), hub


def _mean(workdir: pathlib.Path, name: str, step: int, shipped: Any) -> dict[str, Any]:
    """Returns the weights of a mean, "" of equal ones; whether the run evaluated it."""
    weights = weights_of_mean(workdir, name, step)
    shares = ", ".join(f"{weights.get(k, 0):.3f}" for k in range(step + 1))
    equal = weights == weights_of_mean(workdir, "mean", step)
    return {"weights": "" if equal else shares, "evaluated": weights == shipped}


def references(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Returns the rule and the weights of the reference of each iteration."""
    found = []
    for iteration in range(1, step + 1):
        path = workdir / "iterations" / f"{iteration:03d}" / "reference.json"
        if not path.exists():
            continue
        known = read_listed_json(path)
        groups = known["weights"]
        text = ", ".join(f"{w:.3f}" for w in mean_weights(groups))
        if len(groups) > 1:
            text += f" (means over {len(groups)} groups)"
        found.append({"iteration": iteration, "rule": known["rule"], "weights": text})
    return found


def mean_weights(groups: Sequence[Sequence[float]]) -> list[float]:
    """Returns each model's weight, the mean over the groups."""
    return [sum(column) / len(groups) for column in zip(*groups)]


def evaluation_table(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Returns headings and cells of what the iterations' rows hold of COLUMNS."""
    columns = [(h, key) for h, key in COLUMNS if any(key in row for row in rows)]
    if not columns:
        return [], []
    table = [
        [str(row["iteration"]), *(measured(row, key) for _, key in columns)]
        for row in rows
    ]
    return ["policy", *(heading for heading, _ in columns)], table


def further(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns other sets, scorers and judges: what has an interval or is a win rate."""
    shown = {key for _, key in COLUMNS}
    found = []
    for key in row:
        stem = key.removesuffix("/mean")
        if key not in shown and f"{stem}/low" in row and f"{stem}/high" in row:
            found.append((key, measured(row, key)))
    return found


def measured(row: Mapping[str, Any], key: str) -> str:
    """Returns "value [low, high]" as far as they are there and finite."""
    value = row.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    stem = key.removesuffix("/mean")
    ends = [row.get(f"{stem}/{end}") for end in ("low", "high")]
    if all(isinstance(x, int | float) and math.isfinite(x) for x in ends):
        return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
    return f"{value:.3f}"


def run_versions(workdir: pathlib.Path) -> dict[str, str]:
    """Returns the versions of the run's last session, if it recorded them."""
    lines = read_lines_repaired(workdir / "sessions.jsonl", truncate=False)
    try:
        return dict(json.loads(lines[-1])["versions"]) if lines else {}
    except (ValueError, KeyError, TypeError):
        return {}


def merge_facts(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns what merge.json says, if the model's directory has one."""
    path = directory / "merge.json"
    if not path.is_file():
        return None
    known = read_json(path)
    try:
        means = mean_weights(known["weights"])
        rows = [
            {
                "source": local_name(source["source"]),
                "weight": f"{weight:.4f}",
                "digest": source["digest"],
            }
            for source, weight in zip(known["sources"], means, strict=True)
        ]
        return {
            "rule": known["rule"],
            "rows": rows,
            # None: nothing is rounded, or the record is of an older version.
            "bfloat16_ratio": known.get("signal_to_rounding", {}).get("bfloat16"),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path} is not a merge's record ({type(error).__name__}: {error}); put it "
            "back, or remove it to export without it"
        ) from None


def local_name(source: str) -> str:
    """Returns a hub id as it is, and of a path its last parts."""
    if match := POLICY.fullmatch(source):
        workdir = pathlib.Path(match["workdir"] or ".").absolute().name
        return f"{workdir}/{source.rpartition('/')[2]}"
    if match := TRAJECTORY_STEP.fullmatch(source):
        workdir = pathlib.Path(match["workdir"] or ".").absolute().name
        return f"{workdir}/{match['kept']}@{match['step']}"
    path = pathlib.Path(source)
    return path.name if path.is_absolute() or path.exists() else source


def without_paths(value: Any) -> Any:
    """Returns a config's tree, absolute paths cut to their last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        # A model of ours as a rater: "reward:/a/path".
        head = next((x for x in (REWARD, JUDGE) if value.startswith(x)), "")
        path = value.removeprefix(head)
        if pathlib.Path(path.split(":")[0]).is_absolute():
            return head + pathlib.Path(path).name
    return value


def cell(text: str) -> str:
    """Returns text as Markdown that stays one line, one cell and plain text."""
    line = " ".join(printable(str(text)).split())
    return re.sub(r"[\\|<>`*\[\]]", r"\\\g<0>", line)


def code(text: str) -> str:
    """Returns text for between backticks, in a cell or outside."""
    line = " ".join(printable(str(text)).split())
    return line.replace("`", "'").replace("|", r"\|")


def write_card(template: str, **facts: Any) -> str:
    """Returns the card's text.

    Args:
      template: one such as TEMPLATE, which PROVENANCE and ORIGIN end.
      facts: by the names in there.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    # ASCII-safe JSON is YAML as well.
    environment.filters |= {"tojson": json.dumps, "cell": cell, "code": code}
    text = environment.from_string(template + PROVENANCE + ORIGIN).render(**facts)
    return text.rstrip() + "\n"
