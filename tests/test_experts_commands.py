"""tpmm upcycle and tpmm merge_experts: what they write, say and refuse."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import reward_run_folder
from reward_run_folder import tiny_run

import tpmm_jax as tpmm
from tpmm_jax.commands import export, merge_experts, upcycle
from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.reward_pairs import load_reward_pairs
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.models import Decoder, ExpertsConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.reward_runs.held_out import held_out_rows
from tpmm_jax.weights.loading import resolve_any
from tpmm_jax.weights.saving import save
from tpmm_jax.weights.source import Model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense reward model, a noisy mixture of it made by the command, and pairs."""
    folder = tmp_path_factory.mktemp("experts")
    tiny_run.build_reward_model(folder / "rm")
    command = [str(folder / "rm"), "--experts", "3", "--noise", "0.5", "--layers", "1"]
    command += ["--output", str(folder / "moe"), "--seed", "4"]
    assert upcycle.main(command) == 0
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        sides = [" ".join(rng.choice(tiny_run.WORDS, size=3)) for _ in range(2)]
        row = {"prompt": f"w{number} ", "chosen": sides[0], "rejected": sides[1]}
        lines.append(json.dumps(row) + "\n")
    (folder / "pairs.jsonl").write_text("".join(lines))
    return folder


def said(capsys):
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def card(path):
    return " ".join((path / "README.md").read_text().split())


def test_a_mixture_is_made_with_its_record_and_card(folder):
    content = json.loads((folder / "moe" / "upcycle.json").read_text())
    assert content["layers"] == [1] and content["seed"] == 4
    assert content["experts"]["count"] == 3
    assert content["error"]["most"] > 0
    text = card(folder / "moe")
    assert "which tpmm_jax alone loads" in text and "library_name: tpmm_jax" in text
    assert "AutoModelForSequenceClassification" not in text
    assert "noise of 0.5" in text and "Upcycled from rm" in text
    moe = tpmm.load_reward(folder / "moe")
    made = tpmm.upcycle(
        tpmm.load_reward(folder / "rm"), experts=3, noise=0.5, layers="1", seed=4
    )
    assert moe.config == made.config
    jax.tree.map(np.testing.assert_array_equal, moe.params, made.params)


def test_a_mixture_is_merged_by_learned_weights(capsys, folder, tmp_path):
    out = tmp_path / "dense"
    command = [str(folder / "moe"), "--pairs", str(folder / "pairs.jsonl")]
    command += ["--steps", "3", "--output", str(out)]
    assert merge_experts.main(command) == 0
    text = said(capsys)
    assert "12 pairs from" in text and f"reward:{out}" in text
    content = json.loads((out / "merge_experts.json").read_text())
    assert content["rule"] == "learned" and content["layers"] == [1]
    assert content["pairs"] == {"sources": ["pairs.jsonl"], "used": 10, "held_out": 2}
    models = [row["model"] for row in content["scores"]]
    assert models == ["the mixture", "uniform", "gating", "learned"]
    assert content["source"]["digest"] != content["digest"]
    learning = content["learning"]
    kept = learning["start" if learning["kept"] == "start" else "learned"]
    assert content["weights"] == kept
    said_so = "no better than that start" in card(out)
    assert said_so == (learning["kept"] == "start")
    dense, rm = tpmm.load_reward(out), tpmm.load_reward(folder / "rm")
    assert dense.config == rm.config
    # One more model card, of the directory as it is.
    assert export.main([str(out), "--output", str(tmp_path / "again")]) == 0
    for where in (out, tmp_path / "again"):
        text = card(where)
        assert "merged back into a dense model. The mixture is moe" in text
        assert "our reconstruction of UMM-RM" in text
        assert "AutoModelForSequenceClassification" in text
        assert str(folder) not in text


def test_of_a_run_the_held_out_pairs_are_read_again(folder, tmp_path):
    """As they were split; data that changed, and a run without them, are refused."""
    workdir = reward_run_folder.make(tmp_path / "run", lora=False)
    config = json.loads((workdir / "config.json").read_text())
    config["data"] = {"pairs": str(folder / "pairs.jsonl")}
    config["evaluation"] = {"holdout_fraction": 0.5}
    config["loss"]["use_margins"] = False
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "data.json").write_text('{"date": "2026-01-02"}')
    (source,) = resolve_any([str(workdir)])
    console = RunConsole(io.StringIO())
    with pytest.raises(BadInput, match="is not finished"):
        held_out_rows(workdir, source, console)
    data = RewardDataConfig(**config["data"])
    wanted = load_reward_pairs(
        data, make_codec(source.config, source.tokenizer, data.reading()), seed=5,
        holdout_fraction=0.5, margins=False, note=print, warn=print,
    )[1]  # fmt: skip
    lines = [
        {
            "group": row.group,
            "chosen_length": len(row.chosen_ids),
            "rejected_length": len(row.rejected_ids),
        }
        for row in wanted
    ]
    listed = workdir / "iterations" / "001" / "held_out.jsonl"
    listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(wanted) == 6
    assert held_out_rows(workdir, source, console) == wanted
    listed.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(BadInput, match="no longer gives the held-out pairs"):
        held_out_rows(workdir, source, console)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--experts", "1"], "--experts is 1; use 2"),
        (["--experts", "0"], "--experts is 0"),
        (["--top-k", "1"], "--top-k is 1; use 2 to 4"),
        (["--shared", "1"], "--shared is 1.0"),
        (["--layers", "7"], "not among the layers 0 to 1"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_what_cannot_be_upcycled(capsys, folder, tmp_path, changes, words):
    command = [str(folder / "rm"), "--output", str(tmp_path / "out"), *changes]
    assert upcycle.main(command) == 2
    assert words in said(capsys)


def test_models_that_are_not_upcycled(capsys, folder, tmp_path):
    tiny_run.build_model(tmp_path / "policy")
    for source, words in (
        (folder / "moe", "is a mixture of experts already"),
        (tmp_path / "policy", "is a causal language model"),
    ):
        assert upcycle.main([str(source), "--output", str(tmp_path / "out")]) == 2
        assert words in said(capsys)


def test_what_cannot_be_merged(capsys, folder, tmp_path):
    """Before any weights are read."""
    config = make_config(
        "mixtral", vocab_size=31, width=12, mlp_width=20, num_layers=1, num_heads=2,
        num_kv_heads=1, max_positions=64,
    )  # fmt: skip
    config = dataclasses.replace(config, experts=ExpertsConfig(count=2, top_k=2))
    for name, output in (("policy", "tokens"), ("mixtral", "reward")):
        decoder = Decoder(dataclasses.replace(config, output=output))
        save(Model(decoder, decoder.init(jax.random.key(0))), tmp_path / name)
    out, moe = ["--output", str(tmp_path / "out")], str(folder / "moe")
    for command, words in (
        ([str(tmp_path / "policy"), *out], "is a policy, whose experts are not merged"),
        ([str(tmp_path / "mixtral"), *out], "has no shared expert"),
        ([str(folder / "rm"), *out], "is dense: it has no experts to merge"),
        ([moe, *out], "needs pairs, and"),
        ([moe, "--output", moe], "is not empty"),
        ([moe, "--holdout", "2", *out], "--holdout is 2.0"),
    ):
        assert merge_experts.main(command) == 2
        assert words in said(capsys)
    for option in (["--steps", "3"], ["--chat"]):
        with pytest.raises(SystemExit) as ended:
            merge_experts.main([moe, "--rule", "uniform", *option, *out])
        assert ended.value.code == 2
        assert f"{option[0]} needs" in said(capsys)


def test_no_module_hides_the_functions():
    """The commands live under tpmm alone."""
    assert tpmm.upcycle.__module__ == "tpmm_jax.facade._experts"
    assert tpmm.merge_experts.__module__ == "tpmm_jax.facade._merge_experts"
