"""Columns beside prompts that a scorer asks for by the names of its parameters."""

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "loop"))

import tiny_run

from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import prepare_prompts
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.prompts import number_prompts
from tpmm_jax.rewards import Raters, ScorerConfig, load_scorer

ROWS = [
    {"prompt": "w1", "answer": "w2", "rest": 0},
    {"prompt": "w3", "answer": None, "rest": 1},
]


def exact(prompts, responses, answer, *, bonus=1.0):
    found = [[bonus * (r == a) for r in some] for some, a in zip(responses, answer)]
    answer.clear()  # its own list at every call
    return found


def read(tmp_path, rows, column="answer"):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare_prompts(str(path), DataConfig(), None, keep={column: "exact"})


def test_a_scorer_is_given_the_columns_that_it_names(tmp_path):
    found = read(tmp_path, ROWS)
    assert found.unread == ["rest"] and not found.problems.found
    codec = make_codec(None, tiny_run.tokenizer(), DataConfig())
    encoded = encode_prompts(codec, found.prompts)
    prompts = number_prompts(codec, found.prompts, encoded, range(2))
    config = ScorerConfig(name=f"{__name__}:exact", options={"bonus": 2})
    scorer = load_scorer(config)
    assert scorer.columns == ("answer",)
    # In the order of the places, as a batch of stored answers is rated again.
    known = prompts.known(codec, [1, 0], [[[4], [5]]] * 2)
    assert known.columns == {"answer": [None, "w2"]}
    for _ in range(2):
        rewards_BR = scorer(["w3", "w1"], [["w2", "w4"]] * 2, known)
        np.testing.assert_array_equal(rewards_BR, [[0, 0], [2, 0]])
    with pytest.raises(BadInput, match="a parameter 'answer' without a default"):
        scorer(["w1"], [["w2"]])
    # In the options it is no column.
    filled = ScorerConfig(name=f"{__name__}:exact", options={"answer": ["w2"]})
    np.testing.assert_array_equal(load_scorer(filled)(["w1"], [["w2"]]), [[1]])


def test_a_column_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"'answr' is missing.*scorer exact asks"):
        read(tmp_path, ROWS, "answr").problems.settle()
    rows = [*ROWS, {"prompt": "w5"}]
    with pytest.raises(BadInput, match=r"jsonl:3: field 'answer' is missing"):
        read(tmp_path, rows).problems.settle()


def test_an_option_of_a_columns_name_is_refused_with_both_named():
    config = ScorerConfig(name=f"{__name__}:exact", options={"answer": 1, "bonus": 2})
    raters = Raters(load_scorer(config))
    assert not raters.columns()
    raters.refuse_filled({"rest", "bonus"}, "data.prompts = p.jsonl")
    text = (
        r"p\.jsonl has the column 'answer', and scorer\.options gives the scorer's par"
    )
    with pytest.raises(BadInput, match=text):
        raters.refuse_filled({"rest", "answer"}, "data.prompts = p.jsonl")
    # What margins come from may ask for columns as well.
    source = load_scorer(ScorerConfig(name=f"{__name__}:exact"))
    assert Raters(margins=source).columns() == {"answer": f"{__name__}:exact"}
