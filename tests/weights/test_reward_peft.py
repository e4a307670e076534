"""PEFT directories of reward models: LoRA with the head whole, in and out.

fixtures/reward_peft was written by peft 0.21 over a base of transformers 5.24 with
torch (tests/fixtures/make_reward_peft.py); its rewards are peft's own.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.weights.loading import load_reward, resolve_reward, start_reward
from tpmm_jax.weights.peft import adapter_config, write_adapters
from tpmm_jax.weights.saving import save

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEAD = "base_model.model.score.weight"


@pytest.fixture(scope="module")
def adapter(fixtures):
    return fixtures / "reward_peft"


def test_golden_rewards_over_a_causal_model_and_a_classifier(
    fixtures, adapter, tmp_path
):
    """The adapter's own head is read, whatever the base has in its place."""
    arrays = dict(np.load(adapter / "golden.npz"))
    rows = arrays["input_ids"], arrays["attention_mask"]
    classifier = tmp_path / "classifier"
    source = start_reward(fixtures / "llama", seed=5)
    decoder = Decoder(source.config)
    save(source.model(decoder, source.read(decoder, "float32")), classifier)
    for base in (fixtures / "llama", classifier):
        rm = load_reward(adapter, base=base)
        found = tpmm.score_tokens(rm, *rows)
        np.testing.assert_allclose(found, arrays["rewards"], atol=1e-4, rtol=0)
        assert rm.origin["source"] == str(adapter)
    lora = resolve_reward(adapter, base=fixtures / "llama").adapter.lora
    assert (lora.rank, lora.alpha) == (2, 6.0)


def test_what_is_written_is_what_peft_wrote(fixtures, adapter, tmp_path):
    """The same tensors under the same names, and the same choice in the config."""
    found = resolve_reward(adapter, base=fixtures / "llama")
    decoder, lora = Decoder(found.config), found.adapter.lora
    adapters = found.adapter.read(decoder)
    content = adapter_config(lora, "base", None, rewards=True)
    write_adapters(adapters, found.config, content, tmp_path)
    ours, theirs = load_file(tmp_path / WEIGHTS), load_file(adapter / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    fields = json.loads((tmp_path / CONFIG).read_text())
    wanted = json.loads((adapter / CONFIG).read_text())
    assert fields["task_type"] == wanted["task_type"] == "SEQ_CLS"
    assert set(fields["modules_to_save"]) <= set(wanted["modules_to_save"])
    again = resolve_reward(tmp_path, base=fixtures / "llama")
    assert again.adapter.lora == lora
    jax.tree.map(np.testing.assert_array_equal, again.adapter.read(decoder), adapters)


def test_a_base_under_the_adapter_can_be_trained_on(fixtures, adapter):
    """Over a causal model the base's own head comes from a seed, and is recorded."""
    found = resolve_reward(adapter, base=fixtures / "llama").adapter
    assert found.base.config.output == "reward"
    assert found.base.origin["seed"] == 0
    decoder = Decoder(found.base.config)
    adapters, base = found.read(decoder), found.base.read(decoder, "float32")
    assert adapters["score"].shape == base["score"].shape


def copy(adapter, folder, change=None, **fields):
    shutil.copytree(adapter, folder)
    content = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps(content))
    if change is not None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


def headless(tensors):
    return {name: x for name, x in tensors.items() if name != HEAD}


REFUSED = {
    "no head": (headless, {}, r"lacks the reward head, base_model\.model\.score"),
    "two labels": (
        lambda x: x | {HEAD: np.zeros((2, 64), np.float32)},
        {},
        r"score\.weight has shape \(2, 64\); wanted \(1, 64\): a reward model has one",
    ),
    "NaN": (
        lambda x: x | {HEAD: np.full((1, 64), np.nan, np.float32)},
        {},
        r"score\.weight has weights that are NaN",
    ),
    "more saved": (
        None,
        {"modules_to_save": ["score", "embed_tokens"]},
        r"modules_to_save is \['embed_tokens'\], which is not understood",
    ),
    "adapted head": (
        None,
        {"target_modules": ["q_proj", "score"]},
        "target_modules takes in score",
    ),
    "a policy's": (
        headless,
        {"task_type": "CAUSAL_LM", "modules_to_save": None},
        "is a causal language model, which has no reward head",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_reward_adapter_is_refused(fixtures, adapter, tmp_path, case):
    change, fields, message = REFUSED[case]
    folder = copy(adapter, tmp_path / "a", change, **fields)
    with pytest.raises(BadInput, match=message):
        load_reward(folder, base=fixtures / "llama")


def test_it_does_not_pass_for_a_policy(fixtures, adapter):
    with pytest.raises(BadInput, match="is a reward model, which has no logits"):
        tpmm.load(adapter, base=fixtures / "llama")


def test_a_task_that_is_not_named_is_told_by_the_head(fixtures, adapter, tmp_path):
    folder = copy(adapter, tmp_path / "a", task_type=None, modules_to_save=["score"])
    expected = load_reward(adapter, base=fixtures / "llama").params
    found = load_reward(folder, base=fixtures / "llama").params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_dropout_and_rslora_are_written(fixtures, tmp_path):
    lora = LoraConfig(rank=4, alpha=8.0, rslora=True, dropout=0.1)
    fields = adapter_config(lora, "base", None, rewards=True)
    assert fields["lora_dropout"] == 0.1 and fields["use_rslora"]
    assert fields["modules_to_save"] == ["score"]
    assert adapter_config(lora, "base", None)["modules_to_save"] is None
