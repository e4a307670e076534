"""Values that no run can use are refused with their field's name."""

import dataclasses
import math

import pytest

from tpmm_jax.config import (
    Config,
    EvaluationConfig,
    ModelSource,
    RolloutConfig,
    check_types,
    flatten,
    load_config,
    set_field,
)
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import RULES, ReferenceConfig
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.steps import TrainConfig


def make(**changes):
    fields = {
        "iterations": 2,
        "model": ModelSource(source="somewhere"),
        "data": DataConfig(prompts="prompts.jsonl"),
        "scorer": ScorerConfig(name="m:f"),
        "train": TrainConfig(learning_rate=1e-5),
    }
    return Config(**fields | changes)


def test_a_config_that_is_no_py_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("def get_config(): ...")
    with pytest.raises(BadInput, match=r"--config .*x\.txt: wanted a \.py file"):
        load_config(path)


FLOATS = [name for name, value in flatten(make()).items() if isinstance(value, float)]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_float_may_be_inf_or_nan(value):
    assert {"reference.kl_weight", "rollout.temperature", "loss.beta"} <= {*FLOATS}
    for name in FLOATS:
        with pytest.raises(BadInput, match=rf"^{name} is {value}; wanted a finite"):
            check_types(set_field(make(), f"{name}={value}"))


def test_nor_may_a_scorers_options_hold_one():
    options = {"scale": 1.0, "inner": [0.5, math.nan]}
    config = make(scorer=ScorerConfig(name="m:f", options=options))
    with pytest.raises(BadInput, match=r"scorer\.options\.inner\[1\] is nan"):
        config.validate()


def test_an_interval_needs_two_evaluation_prompts():
    make(evaluation=EvaluationConfig(num_prompts=2)).validate()
    with pytest.raises(BadInput, match=r"evaluation\.num_prompts is 1; use at least 2"):
        make(evaluation=EvaluationConfig(num_prompts=1)).validate()


@pytest.mark.parametrize(
    "fields, wanted",
    [
        ({"max_completion_length": 9}, "a rollout is rollout.max_new_tokens"),
        ({"fields": {"chosen": "a"}}, "of data.prompts is data.prompt_field"),
        ({"prompts": None, "pairs": "p", "prompt_field": "q"}, r'\{"prompt": "q"\}'),
    ],
)
def test_fields_of_data_that_are_not_there_are_refused(fields, wanted):
    with pytest.raises(BadInput, match=wanted):
        DataConfig(**{"prompts": "p.jsonl", **fields}).validate()
    both = {"prompts": None, "pairs": "p", "max_completion_length": 9}
    DataConfig(**both, eval_prompts="e", prompt_field="q").validate()


def test_ints_pass_for_floats():
    make(rollout=RolloutConfig(temperature=1)).validate()


OWNERS = {
    "ema_mu": ("ema", 0.25),
    "trust_region_alpha": ("trust_region", 0.5),
    "trust_region_tau": ("trust_region", 7),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("field", OWNERS)
def test_constants_of_another_rule_are_refused(field, rule):
    owner, value = OWNERS[field]
    config = ReferenceConfig(rule=rule, **{field: value})
    if rule == owner:
        config.validate(tuple(RULES))
        return
    wanted = f"reference.{field} has no meaning for rule {rule!r}"
    with pytest.raises(BadInput, match=wanted):
        config.validate(tuple(RULES))


@pytest.mark.parametrize("rule", RULES)
def test_one_config_compares_all_rules(rule):
    """What was set for "learned" may stay when only the rule is changed."""
    config = ReferenceConfig(
        fit="adam", granularity="layer", objective="fixed", beta=0.3, kl_weight=0.1,
        steps=7, learning_rate=0.3, batch_size=5, start="carried",
        length_normalized=True, holdout_window=3,
    )  # fmt: skip
    dataclasses.replace(config, rule=rule).validate(tuple(RULES))
