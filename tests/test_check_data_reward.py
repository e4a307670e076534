"""tpmm check_data --reward: answers that a reward model reads otherwise elsewhere."""

import json
import pathlib

import pytest
from reward_run_folder import tiny_run

from tpmm_jax.commands import check_data
from tpmm_jax.commands._data_rewards import pooling_counts


def test_where_the_pad_id_stands():
    answers = [[5, 6, 7], [5, 0, 7], [5, 6, 0], [0, 6, 0], [5]]
    assert pooling_counts(answers, pad=0, limit=2) == {
        "reward_answers": 5,
        "reward_too_long": 4,
        "reward_pad_last": 2,
        "reward_pad_inside": 1,
    }
    none = pooling_counts(answers, pad=None, limit=3)
    assert none["reward_pad_last"] == none["reward_pad_inside"] == 0


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "pairs.jsonl"
    some = [{"prompt": "w1 ", "chosen": "w2", "rejected": "w3"}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return str(path)


def counts_of(capsys, *argv):
    code = check_data.main([*argv, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_a_pad_id_that_ends_answers_is_counted(capsys, tmp_path, rows):
    """pad = eos: the end of every answer is passed over by transformers."""
    model = tmp_path / "rm"
    tiny_run.build_reward_model(model)
    found = counts_of(capsys, rows, "--reward", str(model))
    assert found["counts"]["reward_answers"] == 6
    assert found["counts"]["reward_pad_last"] == 0
    path = pathlib.Path(model / "config.json")
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"pad_token_id": 1}))
    found = counts_of(capsys, rows, "--reward", str(model))
    assert found["counts"]["reward_pad_last"] == 6
    assert any("6 of 6 answers before their last token" in x for x in found["remarks"])
    path.write_text(json.dumps(fields | {"pad_token_id": None}))
    found = counts_of(capsys, rows, "--reward", str(model))
    assert any("names no pad_token_id" in text for text in found["remarks"])


def test_what_is_no_reward_model_is_refused(capsys, tmp_path, rows):
    model = tmp_path / "policy"
    tiny_run.build_model(model)
    assert check_data.main([rows, "--reward", str(model)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is a causal language model, which has no reward head" in said
    assert check_data.main([rows, "--prompts", "--reward", str(model)]) == 2
    assert "--reward reads the answers of pairs" in capsys.readouterr().err
