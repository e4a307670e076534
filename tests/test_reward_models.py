"""Reward models from Hugging Face's format: golden rewards, saving, what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from reward_run_folder import tiny_run
from safetensors.numpy import load_file, save_file

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import FAMILIES, make_config
from tpmm_jax.weights.hf_config import parse_config, write_config
from tpmm_jax.weights.loading import load_reward, resolve_reward, start_reward
from tpmm_jax.weights.saving import save

FIXTURES = ("reward_llama", "reward_gemma")
# Of the rows of golden.npz: the last token of row 5 is the pad id, so that
# transformers, which pools by ids, reads that row one token earlier. In row 4 pad ids
# stand inside the text alone, and both agree.
POOLED_ELSEWHERE = 5


def golden(fixtures, name):
    return dict(np.load(fixtures / name / "golden.npz"))


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_rewards_on_either_side_of_padding(fixtures, name):
    rm, arrays = load_reward(fixtures / name), golden(fixtures, name)
    right = tpmm.score_tokens(rm, arrays["input_ids"], arrays["attention_mask"])
    left = tpmm.score_tokens(
        rm, arrays["left_input_ids"], arrays["left_attention_mask"]
    )
    assert right.dtype == np.float32 and right.shape == (6,)
    for found in (right, left):
        np.testing.assert_allclose(found, arrays["rewards"], atol=1e-4, rtol=0)
    near = np.abs(np.asarray(right) - arrays["transformers"]) <= 1e-4
    assert [i for i in range(6) if not near[i]] == [POOLED_ELSEWHERE]
    # What stands at padding does not matter.
    other = np.where(arrays["attention_mask"] == 1, arrays["input_ids"], 77)
    again = tpmm.score_tokens(rm, other, arrays["attention_mask"])
    np.testing.assert_array_equal(again, right)


@pytest.mark.parametrize("name", FIXTURES)
def test_transformers_reads_that_row_one_token_earlier(fixtures, name):
    rm, arrays = load_reward(fixtures / name), golden(fixtures, name)
    mask = arrays["attention_mask"].copy()
    row = mask[POOLED_ELSEWHERE]
    row[row.sum() - 1] = 0
    found = tpmm.score_tokens(rm, arrays["input_ids"], mask)[POOLED_ELSEWHERE]
    wanted = arrays["transformers"][POOLED_ELSEWHERE]
    assert abs(float(found) - wanted) <= 1e-4


@pytest.mark.parametrize("name", FIXTURES)
def test_sharded_is_unsharded(fixtures, name):
    arrays = golden(fixtures, name)
    batch = arrays["left_input_ids"], arrays["left_attention_mask"]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = load_reward(fixtures / name, mesh=mesh)
    assert len(sharded.params["embedding"].sharding.device_set) == 8
    found = tpmm.score_tokens(sharded, *batch)
    np.testing.assert_allclose(found, arrays["rewards"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FIXTURES)
def test_bfloat16_rewards_are_near(fixtures, name):
    """Activations are rounded to 2^-8; the head and its sum are float32."""
    arrays = golden(fixtures, name)
    rm = load_reward(fixtures / name, dtype="bfloat16")
    found = tpmm.score_tokens(rm, arrays["input_ids"], arrays["attention_mask"])
    assert found.dtype == np.float32
    scale = np.abs(arrays["rewards"]).max()
    np.testing.assert_allclose(found, arrays["rewards"], atol=0.03 * scale, rtol=0)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_saved_reward_model_is_the_same(fixtures, tmp_path, name):
    rm, arrays = load_reward(fixtures / name), golden(fixtures, name)
    tpmm.save(rm, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    theirs = json.loads((fixtures / name / "config.json").read_text())
    for key in ("architectures", "id2label", "label2id", "pad_token_id"):
        assert config[key] == theirs[key]
    before = load_file(fixtures / name / "model.safetensors")
    after = load_file(tmp_path / "copy" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    again = load_reward(tmp_path / "copy")
    batch = arrays["input_ids"], arrays["attention_mask"]
    np.testing.assert_array_equal(
        tpmm.score_tokens(again, *batch), tpmm.score_tokens(rm, *batch)
    )


# transformers' classes; that of Gemma 3's text model has a name of its own.
CLASSES = {
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "qwen3_moe": "Qwen3MoeForSequenceClassification",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_class(family):
    config = make_config(
        family, vocab_size=37, width=24, mlp_width=22, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=6, max_positions=32,
    )  # fmt: skip
    config = dataclasses.replace(config, output="reward")
    written = write_config(config, "float32")
    assert written["architectures"] == [CLASSES[family]]
    assert parse_config(written, "config.json") == config


def changed(folder, fixtures, tensors=None, **fields):
    """A copy of the llama fixture with other fields or tensors."""
    shutil.copytree(fixtures / "reward_llama", folder)
    path = folder / "config.json"
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(content))
    if tensors is not None:
        weights = folder / "model.safetensors"
        save_file(tensors(load_file(weights)), weights)
    return folder


TWO = {"0": "NEGATIVE", "1": "POSITIVE"}
WRONG = {
    "no head": ({}, lambda x: without(x, "score.weight"), r"lacks 1 .*score\.weight"),
    "two labels": ({"id2label": TWO}, None, "the head has 2 labels; a reward model"),
    "two rows": (
        {},
        lambda x: x | {"score.weight": np.zeros((2, 64), np.float32)},
        r"score\.weight has shape \(2, 64\); wanted \(1, 64\)",
    ),
    "another width": (
        {},
        lambda x: x | {"score.weight": np.zeros((1, 32), np.float32)},
        r"score\.weight has shape \(1, 32\); wanted \(1, 64\)",
    ),
    "a bias": (
        {},
        lambda x: x | {"score.bias": np.zeros(1, np.float32)},
        r"has unknown 1 tensors .*score\.bias",
    ),
    "NaN": (
        {},
        lambda x: x | {"score.weight": np.full((1, 64), np.nan, np.float32)},
        r"score\.weight has weights that are NaN or infinite",
    ),
}


def without(tensors, name):
    return {key: x for key, x in tensors.items() if key != name}


@pytest.mark.parametrize("case", WRONG)
def test_a_head_that_is_not_one_is_refused(fixtures, tmp_path, case):
    fields, tensors, message = WRONG[case]
    folder = changed(tmp_path / "rm", fixtures, tensors, **fields)
    with pytest.raises(BadInput, match=message):
        load_reward(folder)


def test_a_config_without_a_pad_id_is_read(fixtures, tmp_path):
    """The reward is read by the mask, so that no pad id is needed."""
    folder = changed(tmp_path / "rm", fixtures, pad_token_id=None)
    arrays, rm = golden(fixtures, "reward_llama"), load_reward(folder)
    assert rm.config.pad_id is None
    found = tpmm.score_tokens(rm, arrays["input_ids"], arrays["attention_mask"])
    np.testing.assert_allclose(found, arrays["rewards"], atol=1e-4, rtol=0)


def test_policies_and_reward_models_do_not_stand_for_each_other(fixtures):
    rm, policy = load_reward(fixtures / "reward_llama"), tpmm.load(fixtures / "llama")
    ids, mask = np.array([[3, 4]]), np.array([[1, 1]])
    for call, name in (
        (lambda: tpmm.generate(rm, [[3, 4]]), "generate"),
        (lambda: tpmm.stream(rm, [3, 4]), "stream"),
        (lambda: tpmm.logits(rm, ids, mask), "logits"),
        (lambda: tpmm.log_probs(rm, ids, mask), "log_probs"),
    ):
        with pytest.raises(BadInput, match=f"{name} needs a causal .*reward_llama is"):
            call()
    with pytest.raises(
        BadInput, match=r"score_tokens needs a reward model, and .*llama"
    ):
        tpmm.score_tokens(policy, ids, mask)
    with pytest.raises(BadInput, match="is a causal language model, which has no rew"):
        load_reward(fixtures / "llama")
    with pytest.raises(BadInput, match="is a reward model, which has no logits"):
        tpmm.load(fixtures / "reward_llama")
    for pair in ([policy, rm], [rm, policy]):
        with pytest.raises(BadInput, match="only models of one kind can be merged"):
            tpmm.merge(pair, [0.5, 0.5])


def test_answers_are_scored_as_their_tokens_are(tmp_path):
    """With the reward model's own tokenizer, the end of the answer included."""
    tiny_run.build_reward_model(tmp_path / "rm")
    rm = load_reward(tmp_path / "rm")
    found = tpmm.score(rm, ["w1 w2", "w3"], [["w4", "w5 w6"], ["w7", ""]])
    assert found.dtype == np.float32 and found.shape == (2, 2)
    ids = rm.tokenizer("w1 w2 w5 w6", add_special_tokens=False)["input_ids"]
    row = [rm.config.bos_id, *ids, *rm.config.eos_ids]
    wanted = [
        float(tpmm.score_tokens(rm, [some], np.ones((1, len(some)), int))[0])
        for some in (row, row[1:])
    ]
    assert np.abs(np.asarray(wanted) - found[0, 1]).min() < 1e-5
    long = "w1 " * 70
    with pytest.raises(BadInput, match=r"response 0 has 7\d tokens.* 64 positions"):
        tpmm.score(rm, [long], [["w2"]])
    with pytest.raises(BadInput, match="prompts is one text"):
        tpmm.score(rm, "w1", [["w2"]])
    with pytest.raises(BadInput, match="wanted a list of texts for each prompt"):
        tpmm.score(rm, ["w1"], ["w2"])
    with pytest.raises(BadInput, match="score needs a reward model"):
        tpmm.score(tpmm.load(_policy(tmp_path)), ["w1"], [["w2"]])


def _policy(folder):
    tiny_run.build_model(folder / "policy")
    return folder / "policy"


def test_rows_without_tokens_or_beyond_the_positions_are_refused(fixtures):
    rm = load_reward(fixtures / "reward_llama")
    ids, mask = np.full((2, 300), 5), np.ones((2, 300), int)
    mask[0, 256:] = 0
    with pytest.raises(BadInput, match="row 1 has 300 tokens; wanted 1 to 256"):
        tpmm.score_tokens(rm, ids, mask)
    mask[1] = 0
    with pytest.raises(BadInput, match="row 1 has 0 tokens"):
        tpmm.score_tokens(rm, ids, mask)
    with pytest.raises(BadInput, match="token ids run from 5 to 512"):
        tpmm.score_tokens(rm, [[5, 512]], [[1, 1]])


def test_reward_models_are_merged(fixtures):
    """The mean of weights, which for two heads on one backbone is that of rewards."""
    arrays = golden(fixtures, "reward_llama")
    batch = arrays["input_ids"], arrays["attention_mask"]
    rm = load_reward(fixtures / "reward_llama")
    other = dataclasses.replace(rm, params=rm.params | {"score": -rm.params["score"]})
    merged = tpmm.merge([fixtures / "reward_llama", other], [0.75, 0.25])
    assert merged.config == rm.config
    found = tpmm.score_tokens(merged, *batch)
    np.testing.assert_allclose(found, arrays["rewards"] / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_new_head_is_drawn_from_its_seed(fixtures, name):
    source = start_reward(fixtures / name, seed=3)
    assert source.config.output == "reward" and source.origin["seed"] == 3
    decoder = Decoder(source.config)
    params, again = (source.read(decoder, "float32") for _ in range(2))
    other = start_reward(fixtures / name, seed=4).read(decoder, "float32")
    head = np.asarray(params["score"])
    assert np.array_equal(head, again["score"])
    assert not np.array_equal(head, other["score"])
    std = (source.config.width + 1) ** -0.5
    assert 0.7 * std < head.std() < 1.3 * std
    backbone = tpmm.load(fixtures / name).params
    backbone.pop("head", None)
    params.pop("score")
    jax.tree.map(np.testing.assert_array_equal, params, backbone)
    taken = start_reward(fixtures / "reward_llama", seed=3)
    assert "seed" not in taken.origin
    assert resolve_reward(fixtures / "reward_llama").config == taken.config


def test_a_new_head_on_a_mesh_is_the_same(fixtures, tmp_path):
    source = start_reward(fixtures / "llama", seed=3)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    one, many = Decoder(source.config), Decoder(source.config, mesh=mesh)
    heads = [np.asarray(source.read(x, "float32")["score"]) for x in (one, many)]
    np.testing.assert_array_equal(*heads)
    save(source.model(one, source.read(one, "float32")), tmp_path / "rm")
    np.testing.assert_array_equal(
        load_reward(tmp_path / "rm").params["score"], heads[0]
    )
