"""tpmm export: a directory that loads, whole or not at all, and an honest card."""

import errno
import json
import os
import pathlib
import shutil

import command_runs
import jax
import numpy as np
import pytest
import yaml

import tpmm_jax as tpmm
from tpmm_jax.commands import export as command
from tpmm_jax.commands._card import run_facts
from tpmm_jax.store import Trajectory
from tpmm_jax.weights import saving
from tpmm_jax.weights.loading import resolve


@pytest.fixture(scope="module")
def run():
    return str(command_runs.finished_run())


def export(capsys, *argv):
    code = command.main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, " ".join(out.split()), " ".join(err.split())


def front_matter(folder):
    head, text = (folder / "README.md").read_text().split("\n---\n", 1)
    return yaml.safe_load(head.removeprefix("---\n")), text


def test_a_step_becomes_a_directory_with_its_card(capsys, run, tmp_path):
    out = tmp_path / "my-model"
    code, said, _ = export(
        capsys, f"{run}/trajectory@2", "--output", out, "--license", "apache-2.0"
    )
    assert code == 0 and "sample" in said
    ours, theirs = tpmm.load(f"{run}/trajectory@2"), tpmm.load(out)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params)):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert theirs.tokenizer.chat_template == command_runs.CHAT
    turns = [{"role": "user", "content": "Grüße 😀"}]
    assert theirs.tokenizer.apply_chat_template(
        turns, tokenize=False
    ) == ours.tokenizer.apply_chat_template(turns, tokenize=False)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 0
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask()

    head, text = front_matter(out)
    assert head["library_name"] == "transformers" and head["license"] == "apache-2.0"
    assert head["base_model"] == "org/base" and "dpo" in head["tags"]
    with Trajectory(f"{run}/trajectory", read_only=True) as trajectory:
        assert trajectory.digest(2) in text and trajectory.digest(0) in text
    for wanted in (
        "# my-model",
        "| 2 | learned | 0.500, 0.500 |",
        "our\nreconstruction",
        "| 2 | 0.200 [0.150, 0.250] | 0.600 [0.500, 0.700] |",
        "| film/reward/mean | 0.200 [0.100, 0.300] |",
        "answers grew 1.7 times",
        "a" * 64,
        "| jax (run) | 0.10.9 |",
        f"| jax (export) | {jax.__version__} |",
        '"beta": 0.1',
        "`module:score`",
    ):
        assert wanted in text, (wanted, text)
    assert "/home/someone" not in text and str(run) not in text


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_first_policy_and_other_models_have_cards_too(capsys, run, tmp_path):
    code, _, _ = export(capsys, f"{run}/trajectory@0", "--output", tmp_path / "zero")
    head, text = front_matter(tmp_path / "zero")
    assert code == 0 and "license" not in head and "| 0 | 0.000 [" in text
    folder = command_runs.model_folder(tmp_path / "other", chat=False)
    code, said, _ = export(
        capsys, folder, "--output", tmp_path / "copy", "--base-model", "a/b"
    )
    head, text = front_matter(tmp_path / "copy")
    assert code == 0 and head["base_model"] == "a/b" and "no license" in said
    assert "Converted from other" in text and "reconstruction" not in text


def test_names_and_versions_cannot_break_the_card(run, tmp_path):
    hostile = "1.0 | <b>\x1b[31m\n\n# Heading\n`x` [a](http://b)"
    workdir = tmp_path / "run"
    workdir.mkdir()
    for path in pathlib.Path(run).iterdir():
        if path.name not in ("config.json", "sessions.jsonl"):
            (workdir / path.name).symlink_to(path)
    config = json.loads((pathlib.Path(run) / "config.json").read_text())
    config["loss"]["name"] = ["dpo", "sft", "x: [y"]
    config["loss"]["weights"] = [1.0, 0.1, 0.1]
    config["scorer"]["name"] = f"module:{hostile}"
    (workdir / "config.json").write_text(json.dumps(config))
    session = {"versions": {"jax": hostile, hostile: "2"}}
    (workdir / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    step, out = f"{workdir}/trajectory@2", tmp_path / "out"
    args = command.parse_args([step, "--output", str(out), "--name", hostile])
    facts = run_facts(step)
    text = command.card(args, resolve(step), facts, "d", None, "org/base")
    head, body = text.split("\n---\n", 1)
    tags = yaml.safe_load(head.removeprefix("---\n"))["tags"]
    assert tags == ["tpmm_jax", "preference-optimization", "dpo", "sft", "x: [y"]
    assert "dpo + sft + x: [y loss" in body
    assert "\x1b" not in body and "\n# Heading" not in body and "\n`x`" not in body
    assert (
        r"| jax (run) | 1.0 \| \<b\>\\x1b\[31m # Heading \`x\` \[a\](http://b) |"
        in body
    )


def test_the_card_of_an_offline_run_with_a_scorer(capsys, run, tmp_path):
    folder = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((folder / "config.json").read_text())
    config["data"] = {"pairs": "pairs.jsonl", "prompts": None}
    (folder / "config.json").write_text(json.dumps(config | {"iterations": 1}))
    code, _, _ = export(capsys, f"{folder}/trajectory@2", "--output", tmp_path / "out")
    text = " ".join(front_matter(tmp_path / "out")[1].split())
    assert code == 0 and "a part of a preference set was taken" in text
    assert "`module:score`; it labelled no training pair" in text
    # The config was lowered after the run: there are two policies all the same.
    assert "Policy 2 of a run of 2 iterations" in text


def test_the_card_says_which_labels_are_of_an_earlier_scorer(run, tmp_path):
    folder = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    rows[1]["labels/earlier_scorer"] = 1
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    step = f"{folder}/trajectory@2"
    args = command.parse_args([step, "--output", str(tmp_path / "out")])
    card = command.card(args, resolve(step), run_facts(step), "d", None, "org/base")
    words = " ".join(card.split())
    assert "An earlier version of it labelled the pairs of iteration 1. " in words


def test_a_merge_says_of_what(capsys, tmp_path):
    folder = command_runs.model_folder(tmp_path / "merged")
    record = {
        "rule": "learned",
        "weights": [[0.75, 0.25], [0.25, 0.75]],
        "sources": [
            {"source": "a/b", "digest": "d1"},
            {"source": "c/d", "digest": "d2"},
        ],
    }
    (folder / "merge.json").write_text(json.dumps(record))
    code, _, _ = export(capsys, folder, "--output", tmp_path / "out")
    head, text = front_matter(tmp_path / "out")
    assert code == 0 and "merge" in head["tags"]
    assert "| a/b | 0.5000 | `d1` |" in text and "our reconstruction" in text
    (folder / "merge.json").write_text('{"rule": "given"}')
    code, _, err = export(capsys, folder, "--output", tmp_path / "out2")
    assert code == 2 and "is not a merge's record" in err


def test_shards_and_bfloat16(capsys, run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "parse_size", lambda text: 4000)
    monkeypatch.setattr(command, "signal_to_rounding", lambda *_: 1.5)
    out = tmp_path / "out"
    code, said, _ = export(
        capsys, f"{run}/trajectory@1", "--output", out, "--dtype", "bfloat16"
    )
    assert code == 0 and "1.5 times the rounding error" in said
    assert (out / "model.safetensors.index.json").exists()
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert tpmm.load(out, dtype="bfloat16").config.num_layers == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 5e8),
        ("4GB", 4e9),
        ("2GiB", 2**31),
        ("1.5 gb", 1.5e9),
        ("2000000", 2e6),
    ],
)
def test_sizes(text, size):
    assert command.parse_size(text) == size


def test_wrong_input_is_named_and_nothing_is_left(capsys, run, tmp_path, fixtures):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    out = tmp_path / "out"
    step, to = f"{run}/trajectory@1", ["--output", out]
    wrong = [
        ([f"{run}/trajectory@9", *to], "holds the steps [0, 1, 2]"),
        (["./nowhere", *to], "nowhere: no such directory"),
        ([step, "--output", full], "exists and is not empty"),
        ([step, *to, "--dtype", "fp8"], "dtype is fp8"),
        ([step, *to, "--max-shard-size", "4 bananas"], "'4 bananas'"),
        ([step, *to, "--max-shard-size", "10"], "1MB or more"),
        ([step, *to, "--base-model", "no id"], "wanted a hub id"),
        ([step, *to, "--revision", "v1"], "is for a hub id"),
    ]
    for argv, wanted in wrong:
        code, _, err = export(capsys, *argv)
        assert code == 2 and wanted in err, (argv, code, err)
        assert {p.name for p in tmp_path.iterdir()} == {"full"}
    code, said, _ = export(capsys, fixtures / "llama", *to)
    assert code == 0 and "has no tokenizer" in said
    with pytest.raises(SystemExit) as ended:
        command.main([step, *map(str, to), "--licence", "mit"])
    assert ended.value.code == 2
    assert "did you mean --license?" in capsys.readouterr().err


def test_a_disk_that_refuses_leaves_nothing(capsys, run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(saving, "write_params", refuse)
    out = tmp_path / "out"
    code, _, err = export(capsys, f"{run}/trajectory@1", "--output", out)
    assert code == 4 and "Read-only file system" in err and "another folder" in err
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "replace", refuse)
    code, _, err = export(capsys, f"{run}/trajectory@1", "--output", out)
    assert code == 4 and not list(tmp_path.iterdir())
