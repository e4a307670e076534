"""The model card (README.md) of an exported reward model."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tpmm_jax.commands._card import (
    cell,
    first_model,
    measured,
    run_config,
    run_versions,
    without_paths,
)
from tpmm_jax.models import ModelConfig
from tpmm_jax.store import Trajectory
from tpmm_jax.store.digests import read_listed_json
from tpmm_jax.weights.hub import REWARD, TRAJECTORY_STEP

# Heading and key of a measure in summary.json; an interval is KEY/low, KEY/high.
COLUMNS = (
    ("accuracy", "accuracy"),
    ("loss, nats", "loss"),
    ("calibration error", "ece"),
    ("best of 4", "best_of_4"),
)

REWARD_TEMPLATE = """\
---
library_name: {{ library }}
pipeline_tag: text-classification
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

A reward model: it gives a prompt with an answer one number, and of two answers to one
prompt the better one is to get the higher number. A number alone means nothing.
{% if lora -%}
This is a LoRA adapter of rank {{ lora.rank }}, with the reward head whole, for a
{{ family }} model of {{ parameters }} parameters. Written by tpmm_jax.
{% else -%}
{{ parameters }} parameters, {{ family }}, weights in {{ dtype }}. Written by tpmm_jax.
{% endif %}
{% if not reader -%}
This is a mixture of experts with a shared one, which tpmm_jax alone loads: merge its
experts with `tpmm merge_experts`, and others load what comes out.
{% else -%}
```python
{% if lora -%}
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer
{% else -%}
from transformers import AutoModelForSequenceClassification, AutoTokenizer
{% endif %}
tokenizer = AutoTokenizer.from_pretrained({{ name | tojson }})
model = {{ reader }}.from_pretrained({{ name | tojson }}
{%- if lora %}, num_labels=1{% endif %})
reward = model(**tokenizer(text, return_tensors="pt")).logits[0, 0]
```
{% endif %}
In tpmm_jax: `tpmm.load_reward({{ name | tojson | code }})`, or as a scorer
`reward:{{ name | code }}`.
{% if chat %}
The tokenizer has a chat template, which writes a conversation for the model. It may
write the first token itself: then add no other (`add_special_tokens=False`).
{% endif %}
## Where the reward is read

At the last real token of the text, which is the end of the answer. tpmm_jax finds it by
the attention mask.
{%- if reader %} transformers finds it by ids: it takes the rightmost token that is not
the pad token.
{%- if pad is none %} config.json names no `pad_token_id`, and transformers refuses
batches of several texts without one: set `model.config.pad_token_id`.
{%- elif pad_ends %} **Here the pad token ({{ pad }}) also ends an answer: transformers
reads the reward one token too early, before the end of the answer, on which this model
was trained.** Set `model.config.pad_token_id` to an id that no text ends with.
{%- else %} Both are the same unless a text itself ends in the pad token
(id {{ pad }}).
{%- endif %}
{%- endif %}

## How it was made

{% if run -%}
Trained on pairs of a chosen and a rejected answer with the Bradley-Terry loss,
-log sigmoid(reward of the chosen - reward of the rejected), from {{ run.first }}
({% if run.new_head %}a causal language model, whose head over the vocabulary a new
reward head replaced{% else %}a reward model{% endif %}).
This is what it was after {{ run.steps }} optimizer steps
{%- if run.of %} of {{ run.of }}{% endif %}.
{% for text in run.loss %}
- {{ text }}
{%- endfor %}

## Evaluation

{% if run.table -%}
{% if not run.beats_chance -%}
**This model does not beat chance on its held-out pairs: it is a failed run, and labels
nothing.**
{% endif %}
| pairs | number | {{ run.headings | join(" | ") }} |
|---|---|{% for _ in run.headings %}---|{% endfor %}
{%- for row in run.table %}
| {{ row | join(" | ") }} |
{%- endfor %}

In brackets: 95 % intervals. Accuracy is the share of pairs whose chosen answer has the
higher reward; chance is 0.5.
{%- if run.temperature %} Divided by the temperature {{ run.temperature }}, differences
of rewards are calibrated on the held-out pairs.
{%- endif %}
{%- else -%}
The run has no evaluation of this model.
{%- endif %}

{% set kept = "weights" -%}
"""


def reward_facts(source: str) -> dict[str, Any] | None:
    """Returns what is known of "workdir/reward@N"; None for other models.

    REWARD_TEMPLATE names it "run"; "first_hub" is the hub id that the run began with.
    """
    match = TRAJECTORY_STEP.fullmatch(source)
    if match is None:
        return None
    workdir, step = pathlib.Path(match["workdir"] or "."), int(match["step"])
    config = run_config(workdir)
    with Trajectory(workdir / REWARD, read_only=True) as trajectory:
        meta, start = trajectory.meta(step), trajectory.meta(0)
        data = [("the start", trajectory.digest(0))]
    if (workdir / "data.json").exists():
        pairs = read_listed_json(workdir / "data.json").get("pairs")
        data += [("pairs", pairs)] if pairs else []
    first, hub = first_model(config, start)
    summary = _summary(workdir, step)
    sets = summary.get("sets", {})
    columns = [c for c in COLUMNS if any(c[1] in row for row in sets.values())]
    return {
        "step": step,
        "steps": meta.get("step", 0),
        "of": summary.get("steps"),
        "first": first,
        "first_hub": hub,
        # A seed stands beside a base or a start that was a causal model.
        "new_head": "seed" in start or "seed" in start.get("base", {}),
        "loss": _loss_texts(config),
        "beats_chance": summary.get("beats_chance", True),
        "temperature": _number(summary.get("temperature")),
        "headings": [heading for heading, _ in columns],
        "table": [
            [cell(name), str(row.get("pairs", "-"))]
            + [measured(row, key) for _, key in columns]
            for name, row in sets.items()
        ],
        "data": data,
        "config_text": json.dumps(without_paths(config), indent=2, sort_keys=True),
        "versions": run_versions(workdir),
    }


def _summary(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """Returns the run's summary.json if it is of this step, else {}."""
    for path in sorted((workdir / "iterations").glob("*/summary.json")):
        found = read_listed_json(path)
        if found.get("kept") == step:
            return found
    return {}


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _loss_texts(config: Mapping[str, Any]) -> list[str]:
    """Returns what the loss and the training had beside the plain ones."""
    loss, found = config.get("loss", {}), []
    if loss.get("use_margins"):
        found.append("Each pair's margin was subtracted from its difference.")
    if coefficient := loss.get("center_rewards_coefficient"):
        found.append(f"Rewards were kept around 0 with the coefficient {coefficient}.")
    if smoothing := loss.get("label_smoothing"):
        found.append(f"A share of {smoothing} of the labels was taken for flipped.")
    if rank := config.get("model", {}).get("lora", {}).get("rank"):
        found.append(f"LoRA of rank {rank} was trained, and the reward head whole.")
    return found


# Library and class that load what is written, with and without --peft.
READERS = {
    ("tokens", False): ("transformers", "AutoModelForCausalLM"),
    ("tokens", True): ("peft", "AutoPeftModelForCausalLM"),
    ("reward", False): ("transformers", "AutoModelForSequenceClassification"),
    ("reward", True): ("peft", "AutoPeftModelForSequenceClassification"),
}


def reader_facts(config: ModelConfig, *, peft: bool) -> dict[str, str]:
    """Returns "library" and "reader", the class that loads the model; "": none does."""
    if config.experts is not None and config.experts.shared is not None:
        return {"library": "tpmm_jax", "reader": ""}
    library, reader = READERS[config.output, peft]
    return {"library": library, "reader": reader}


def pooling_facts(config: ModelConfig) -> dict[str, Any]:
    """Returns what REWARD_TEMPLATE says of the pad token."""
    pad = config.pad_id
    return {"pad": pad, "pad_ends": pad is not None and pad in config.eos_ids}
