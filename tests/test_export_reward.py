"""tpmm export and tpmm merge_checkpoints of reward models; what refuses them."""

import json

import jax
import numpy as np
import pytest
import reward_run_folder
import yaml

import tpmm_jax as tpmm
from tpmm_jax.commands import evaluate, export, merge_checkpoints, sample
from tpmm_jax.models import Decoder
from tpmm_jax.weights.loading import (
    adapters_place,
    load_reward,
    resolve_reward,
    start_reward,
)

TOKENS, MASK = np.array([[3, 4, 5, 6], [7, 8, 9, 0]]), np.array([[1] * 4, [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: reward_run_folder.make(folder / name, lora=name == "lora")
        for name in ("whole", "lora")
    }


def rewards(name, **options):
    return np.asarray(tpmm.score_tokens(load_reward(name, **options), TOKENS, MASK))


def read_card(folder):
    head, text = (folder / "README.md").read_text().split("\n---\n", 1)
    return yaml.safe_load(head.removeprefix("---\n")), " ".join(text.split())


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_the_best_model_becomes_a_directory_with_its_card(capsys, runs, tmp_path, kind):
    out = tmp_path / "my-rm"
    assert export.main([f"{runs[kind]}/reward@best", "--output", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"reward:{out}" in said and "AutoModelForSequenceClassification" in said
    found = rewards(out)
    for name in (runs[kind], f"{runs[kind]}/reward@best", f"{runs[kind]}/reward@1"):
        np.testing.assert_array_equal(rewards(name), found)
    assert np.abs(rewards(f"{runs[kind]}/reward@0") - found).max() > 1e-3
    fields = json.loads((out / "config.json").read_text())
    assert fields["architectures"] == ["GemmaForSequenceClassification"]
    assert fields["id2label"] == {"0": "LABEL_0"}
    assert (out / "tokenizer.json").exists()
    head, text = read_card(out)
    assert head["pipeline_tag"] == "text-classification"
    assert head["tags"] == ["tpmm_jax", "reward-model"]
    assert "Bradley-Terry loss" in text and "a causal language model, whose" in text
    assert "after 40 optimizer steps of 60" in text
    assert "| heldout | 200 | 0.700 [0.620, 0.770] | 0.610 | 0.040 |" in text
    assert "margin was subtracted" in text and "temperature 1.25" in text
    assert "ends in the pad token (id 0)" in text
    assert str(runs[kind].parent) not in text
    assert ("LoRA of rank 2" in text) == (kind == "lora")


def test_an_adapter_is_written_with_its_head(capsys, runs, tmp_path):
    """The base is the causal model; its new head of the run's seed is not written."""
    step, out = f"{runs['lora']}/reward@best", tmp_path / "adapter"
    assert export.main([step, "--peft", "--output", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "AutoPeftModelForSequenceClassification" in said and "num_labels=1" in said
    fields = json.loads((out / "adapter_config.json").read_text())
    assert fields["task_type"] == "SEQ_CLS" and fields["modules_to_save"] == ["score"]
    base = (runs["lora"].parent / "base").resolve()
    assert fields["base_model_name_or_path"] == str(base)
    np.testing.assert_array_equal(rewards(out), rewards(step))
    found = resolve_reward(out).adapter.lora
    assert (found.rank, found.alpha) == (2, 6.0)
    assert "num_labels=1" in read_card(out)[1]
    given = tmp_path / "given"
    command = [step, "--peft", "--output", str(given), "--base-model", str(base)]
    assert export.main(command) == 0
    np.testing.assert_array_equal(rewards(given), rewards(step))
    whole = f"{runs['whole']}/reward@best"
    assert export.main([whole, "--peft", "--output", str(tmp_path / "none")]) == 2
    assert "is not a step of a run with" in " ".join(capsys.readouterr().err.split())


def test_the_start_of_a_lora_run_is_the_causal_model_with_the_seeds_head(runs):
    """Read again over the base, whose head the seed in step 0's record gives."""
    base = runs["lora"].parent / "base"
    assert adapters_place(runs["lora"], "reward") == (str(base), None, 5)
    source = start_reward(base, seed=5)
    wanted = source.read(Decoder(source.config), "float32")
    found = load_reward(f"{runs['lora']}/reward@0").params
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_reward_models_are_merged(capsys, runs, tmp_path):
    """The mean of their weights (WARM); a workdir is its best model."""
    names = [str(runs["whole"]), f"{runs['lora']}/reward@best"]
    out = tmp_path / "warm"
    assert merge_checkpoints.main([*names, "--uniform", "--output", str(out)]) == 0
    assert f"reward:{out}" in " ".join(capsys.readouterr().out.split())
    first, second = (load_reward(name).params for name in names)
    found = load_reward(out).params
    jax.tree.map(
        lambda x, a, b: np.testing.assert_allclose(x, (a + b) / 2, atol=1e-7),
        found, first, second,
    )  # fmt: skip
    steps = f"{runs['whole']}/reward@0..1"
    out = tmp_path / "steps"
    assert (
        merge_checkpoints.main([steps, "--weights", "0", "1", "--output", str(out)])
        == 0
    )
    jax.tree.map(np.testing.assert_array_equal, load_reward(out).params, first)
    assert export.main([str(out), "--output", str(tmp_path / "card")]) == 0
    assert "A merge of 2 checkpoints" in read_card(tmp_path / "card")[1]


def test_what_merges_no_reward_models(capsys, runs, tmp_path):
    rm, policy = str(runs["whole"]), str(runs["whole"].parent / "base")
    out = ["--output", str(tmp_path / "out")]
    assert merge_checkpoints.main([policy, rm, "--uniform", *out]) == 2
    assert "only models of one kind" in " ".join(capsys.readouterr().err.split())
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert merge_checkpoints.main([rm, rm, "--learn", str(pairs), *out]) == 2
    assert "--learn scores the merge as a policy" in capsys.readouterr().err


def test_commands_that_draw_answers_refuse_reward_models(capsys, runs, tmp_path):
    rm, prompts = str(runs["whole"]), tmp_path / "p.txt"
    prompts.write_text("w1 w2\nw3\n")
    rated = ["--prompts", str(prompts), "--scorer", "tiny_run:score"]
    for command, argv in (
        (sample.main, [rm, "--prompt", "w1"]),
        (sample.main, [f"{rm}/reward@best", "--prompt", "w1"]),
        (evaluate.main, [rm, *rated]),
    ):
        code = command(argv)
        said = " ".join(capsys.readouterr().err.split())
        assert code == 2 and "is a reward model, which has no logits" in said, said
        assert "reward:SOURCE" in said
