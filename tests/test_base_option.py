"""--base of the commands: the model under a PEFT adapter that cannot find its own."""

import json

import command_runs
import jax
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.commands import evaluate, export, merge_checkpoints, sample
from tpmm_jax.models import LoraConfig
from tpmm_jax.models.lora import abstract_adapters
from tpmm_jax.weights.peft import adapter_config, write_adapters
from tpmm_jax.weights.saving import whole_directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and an adapter that names its quantised form, which is not there."""
    folder = tmp_path_factory.mktemp("base_option")
    command_runs.model_folder(folder / "base")
    decoder, lora = command_runs.decoder(), LoraConfig(rank=2, alpha=4.0)
    structure = abstract_adapters(decoder.abstract_params(), lora)
    adapters = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), structure)
    with whole_directory(folder / "adapter") as whole:
        content = adapter_config(lora, "models/base-bnb-4bit/here", None)
        write_adapters(adapters, decoder.config, content, whole)
    return folder


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def score(prompts, responses):
    return [[float(len(text)) for text in row] for row in responses]


COMMANDS = {
    "sample": (sample.main, ["--prompt", "Hi", "--max-new-tokens", "2"]),
    "export": (export.main, ["--output", "whole"]),
    "merge": (merge_checkpoints.main, ["base", "--uniform", "--output", "merged"]),
    "evaluate": (
        evaluate.main,
        ["base", "--prompts", "p.jsonl", "--scorer", "test_base_option:score",
         "--max-new-tokens", "2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_base_that_is_given_is_read(capsys, folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    rows = [json.dumps({"prompt": text}) + "\n" for text in ("Hi", "No")]
    (folder / "p.jsonl").write_text("".join(rows))
    main, arguments = COMMANDS[name]
    assert main(["adapter", *arguments]) == 2
    assert "adapter/adapter_config.json names its base" in said(capsys)
    assert main(["base", *arguments, "--base", "base"]) == 2
    assert "the base base goes with a PEFT adapter" in said(capsys)
    assert main(["adapter", *arguments, "--base", "base"]) == 0


def test_what_export_and_merge_wrote(folder, monkeypatch):
    monkeypatch.chdir(folder)
    expected = tpmm.load("adapter", base="base").params
    assert export.main(["adapter", "--base", "base", "--output", "w"]) == 0
    jax.tree.map(np.testing.assert_array_equal, tpmm.load("w").params, expected)
    both = ["adapter", "base", "--weights", "1", "0", "--output", "m"]
    assert merge_checkpoints.main([*both, "--base", "base"]) == 0
    jax.tree.map(np.testing.assert_array_equal, tpmm.load("m").params, expected)
    sources = json.loads((folder / "m" / "merge.json").read_text())["sources"]
    assert sources[0]["base"] == {"source": "base"} and "base" not in sources[1]
