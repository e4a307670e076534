"""Config files: read, overridden, typed, refused with a hint."""

import dataclasses
import json
import sys

import jaxtyping
import pytest

from tpmm_jax.config import MAY_CHANGE, Config, flatten, load_config, to_dict
from tpmm_jax.errors import BadInput

GOOD = """
from tpmm_jax.config import Config, ModelSource
from tpmm_jax.data.config import DataConfig
from tpmm_jax.losses import LossConfig
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.steps import TrainConfig


def get_config():
    return Config(
        iterations=3,
        model=ModelSource(source="somewhere"),
        data=DataConfig(prompts="prompts.jsonl"),
        scorer=ScorerConfig(name="module:function", options={"scale": 1}),
        train=TrainConfig(learning_rate=1e-5),
    )
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config file; forgets it afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def make(text=GOOD, name="config_of_a_test.py"):
        (tmp_path / name).write_text(text)
        names.append(name.split(".")[0])
        return tmp_path / name

    yield make
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def production():
    """Without the run-time type checks of the tests, which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_good_config_loads(write):
    config = load_config(write())
    assert isinstance(config, Config) and config.iterations == 3
    assert not config.offline
    assert config.rollout.sampling().max_new_tokens == config.rollout.max_new_tokens


@pytest.mark.parametrize(
    "override, name, wanted",
    [
        ("iterations=7", "iterations", 7),
        ("seed=1_000", "seed", 1000),
        ("loss.beta=0.2", "loss.beta", 0.2),
        ("train.learning_rate=5e-7", "train.learning_rate", 5e-7),
        ("train.weight_decay=1", "train.weight_decay", 1.0),
        ("model.remat=false", "model.remat", False),
        ("model.remat=TRUE", "model.remat", True),
        ("model.revision=main", "model.revision", "main"),
        ("model.revision=none", "model.revision", None),
        ("model.compute_dtype=bfloat16", "model.compute_dtype", "bfloat16"),
        ("reference.mix=log_probs", "reference.mix", "log_probs"),
        ('scorer.options={"a": [1]}', "scorer.options", {"a": [1]}),
        ("scorer.options.scale=2.5", "scorer.options", {"scale": 2.5}),
        ("scorer.options.mode=best", "scorer.options", {"scale": 1, "mode": "best"}),
        ("mesh.fsdp = 2", "mesh.fsdp", 2),
        ("mesh.data=-1", "mesh.data", -1),
        ("model.source=a=b", "model.source", "a=b"),
    ],
)
def test_overrides_are_typed(write, override, name, wanted):
    found = flatten(load_config(write(), [override]))[name]
    assert found == wanted and type(found) is type(wanted)


def test_later_overrides_win(write):
    assert load_config(write(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "override, wanted",
    [
        ("loss.beat=0.2", "loss.beta"),
        ("beta=0.2", "loss.beta"),
        ("los.beta=0.2", "loss.beta"),
        ("train.lr=1e-6", "no such field"),
        ("reference.steps.x=1", "no fields of its own"),
        ("loss=dpo", "loss.name"),
        ("iterations", "name=value"),
        ("iterations=2.5", "a whole number"),
        ("iterations=three", "a whole number"),
        ("iterations=true", "a whole number"),
        ("train.learning_rate=fast", "a number"),
        ("model.remat=maybe", "true or false"),
        ("model.compute_dtype=bf16", "float32, bfloat16"),
        ("model.compute_dtype=float16", "did you mean bfloat16"),
        ("train.schedule=cosin", "did you mean cosine"),
        ("scorer.options=[1]", "JSON object"),
        ("scorer.options={", "JSON object"),
        ("=3", "no such field"),
        ("seed=", "a whole number"),
    ],
)
def test_wrong_overrides_say_what_was_wanted(write, override, wanted):
    with pytest.raises(BadInput) as error:
        load_config(write(), [override])
    assert wanted in str(error.value) and f"--set {override.split('=')[0]}" in str(
        error.value
    )


@pytest.mark.parametrize(
    "old, new, wanted",
    [
        ("iterations=3", "iteration=3", "did you mean iterations"),
        ("learning_rate=1e-5", "learning_rat=1e-5", "did you mean learning_rate"),
        ("learning_rate=1e-5", "", "learning_rate"),
        ("iterations=3", "iterations='3'", "iterations is '3' (str)"),
        ("iterations=3", "iterations=True", "iterations is True (bool)"),
        ("iterations=3", "iterations=3.0", "iterations is 3.0 (float)"),
        ("learning_rate=1e-5", "learning_rate=None", "train.learning_rate is None"),
        ("learning_rate=1e-5", "learning_rate='1e-5'", "train.learning_rate"),
        ("source=\"somewhere\"", "source=None", "model.source is None"),
        ("{\"scale\": 1}", "[1]", "scorer.options is [1]"),
        ("iterations=3", "iterations=3, loss=LossConfig(beta='x')", "loss.beta is 'x'"),
        ("iterations=3", "iterations=3, loss=None", "loss is None"),
        ("iterations=3", "iterations=1 // 0", "ZeroDivisionError"),
        ("return Config", "return dict", "returned a dict"),
        ("def get_config", "def get_konfig", "no get_config()"),
        ("from tpmm_jax.config", "from tpmm_jax.konfig", "konfig"),
        ("def get_config():", "def get_config(:", "SyntaxError"),
    ],
)  # fmt: skip
def test_wrong_files_say_what_was_wanted(write, production, old, new, wanted):
    assert old in GOOD
    path = write(GOOD.replace(old, new))
    with pytest.raises(BadInput) as error:
        load_config(path)
    assert wanted in str(error.value)


def test_files_that_are_not_there_or_not_python(write, tmp_path):
    write()
    with pytest.raises(BadInput, match=r"did you mean .*config_of_a_test\.py"):
        load_config(tmp_path / "config_of_test.py")
    with pytest.raises(BadInput, match="no such file"):
        load_config(tmp_path / "nowhere" / "x.py")
    with pytest.raises(BadInput, match="Python"):
        load_config(write("{}", name="config.json"))


OFFLINE = ("data.prompts=none", "data.pairs=pairs.jsonl", "scorer.name=none")


@pytest.mark.parametrize(
    "overrides, wanted",
    [
        (["iterations=0"], "iterations"),
        (["seed=-1"], "seed"),
        (["model.logits_chunk_mib=0"], "model.logits_chunk_mib"),
        (["rollout.prompts_per_iteration=0"], "rollout.prompts_per_iteration"),
        (["rollout.batch_size=0"], "rollout.batch_size"),
        (["evaluation.num_prompts=0"], "evaluation.num_prompts"),
        (["evaluation.samples_per_prompt=0"], "evaluation.samples_per_prompt"),
        (["data.prompts=none"], "exactly one of data.prompts"),
        (["data.pairs=x.jsonl"], "exactly one of data.prompts"),
        (["data.max_prompt_length=0"], "data.max_prompt_length"),
        (["data.max_completion_length=0"], "data.max_completion_length"),
        (["rollout.max_new_tokens=0"], "rollout.max_new_tokens"),
        (["rollout.temperature=-1"], "rollout.temperature"),
        (["rollout.top_p=0"], "rollout.top_p"),
        (["rollout.top_k=-1"], "rollout.top_k"),
        (["pairing.holdout_fraction=1"], "pairing.holdout_fraction"),
        (["pairing.flip_probability=2"], "pairing.flip_probability"),
        (["reference.rule=leaned"], "reference.rule"),
        (["loss.name=dppo"], "loss.name"),
        (["loss.beta=0"], "loss.beta"),
        (["loss.beta=nan"], "loss.beta"),
        (["train.batch_size=8", "train.accumulation=3"], "train.accumulation"),
        (["train.learning_rate=0"], "train.learning_rate"),
        (["train.learning_rate=inf"], "train.learning_rate"),
        (
            ["pairing.holdout_fraction=0", "reference.rule=learned"],
            "pairing.holdout_fraction above 0",
        ),
        (["pairing.holdout_fraction=0", "reference.rule=best"], "reference.rule=best"),
        (["scorer.name=none"], "data.prompts needs a scorer"),
        (["rollout.samples_per_prompt=1"], "rollout.samples_per_prompt"),
        (["rollout.temperature=0"], "rollout.temperature"),
        ([*OFFLINE, "scorer.name=m:f"], "data.eval_prompts too"),
        (
            [*OFFLINE, "data.eval_prompts=x", "scorer.name=judge:x"],
            "scorer.name is 'judge:x', which compares",
        ),
        (["scorer.name=judge:x", "scorer.clip=5"], "a judge's rewards are shares"),
        (["judge.tie=[]"], "judge.tie is set, but no judge is a model"),
        (["scorer.name=judge:x", "judge.first=[]"], "judge.first is empty"),
    ],
)
def test_combinations_that_cannot_run_are_refused(write, overrides, wanted):
    with pytest.raises(BadInput) as error:
        load_config(write(), overrides)
    assert wanted in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        OFFLINE,
        [*OFFLINE, "scorer.name=m:f", "data.eval_prompts=x"],
        [*OFFLINE, "data.eval_prompts=x"],
        [*OFFLINE, "data.eval_prompts=x", 'evaluation.judges={"even": "m:f"}'],
        [*OFFLINE, "rollout.temperature=0"],
        ["pairing.holdout_fraction=0", "reference.rule=uniform"],
        ["loss.name=robust", "loss.label_smoothing=0.1"],
        ['evaluation.judges={"m": "judge:x"}', "judge.max_new_tokens=64"],
        ["scorer.name=judge:x", 'judge.tie=["C"]', "judge.chat=false"],
    ],
)
def test_combinations_that_can_run_are_accepted(write, overrides):
    load_config(write(), overrides)


def test_the_resolved_config_is_json_and_flat(write):
    config = load_config(write())
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)
    flat = flatten(config)
    assert flat["train.learning_rate"] == 1e-5 and flat["scorer.options"] == {
        "scale": 1
    }
    assert set(MAY_CHANGE) <= set(flat)


def test_the_folder_of_a_config_holds_its_scorer(write, tmp_path):
    write("def f(prompts, responses):\n    return 1\n", name="scorer_beside_config.py")
    load_config(write())
    from tpmm_jax.rewards import import_object

    assert import_object("scorer_beside_config:f", "scorer.name")([], []) == 1


def test_a_scorer_may_live_in_the_config_itself(write):
    text = GOOD + "\n\nTOKEN = object()\n\ndef f(p, r):\n    return TOKEN\n"
    load_config(write(text, name="config_with_scorer.py"))
    from tpmm_jax.rewards import import_object

    found = import_object("config_with_scorer:f", "scorer.name")([], [])
    assert found is sys.modules["config_with_scorer"].TOKEN


def test_configs_are_frozen(write):
    config = load_config(write())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
