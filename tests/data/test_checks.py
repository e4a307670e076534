"""What is counted as empty is empty, whatever columns and files are called."""

import json

import pytest

from tpmm_jax.data.checks import empty_count
from tpmm_jax.data.pairs import read_pair_set
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.prompts import read_prompt_set

TURN = {"role": "user", "content": "hi"}
HH = "\n\nHuman: hi\n\nAssistant:"


def _count(read, path, text, **options):
    path.write_text(text)
    problems = Problems(str(path))
    read(str(path), problems, **options)
    assert problems.found
    return empty_count(problems.found)


@pytest.mark.parametrize(
    "row, count",
    [
        ({"prompt": "", "chosen": " ", "rejected": "b"}, 1),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, 1),
        ({"instruction": "", "chosen": "a", "rejected": "b"}, 1),
        ({"prompt": [{"role": "user", "content": " "}], "chosen": "a"}, 1),
        ({"chosen": HH, "rejected": HH + " a"}, 1),
        ({"empty": "a", "chosen": "a"}, 0),
        ({"prompt": [TURN | {"role": "is empty"}], "chosen": "a", "rejected": ""}, 1),
        ({"prompt": [TURN | {"role": "is empty"}], "chosen": "a", "rejected": "b"}, 0),
    ],
)
def test_empty_rows_of_pairs(tmp_path, row, count):
    path = tmp_path / "empty.jsonl"
    assert _count(read_pair_set, path, json.dumps(row)) == count


def test_empty_rows_of_prompts(tmp_path):
    rows = '{"prompt": ""}\n{"prompt": []}\n{"is empty": 1}\n'
    assert _count(read_prompt_set, tmp_path / "empty.jsonl", rows) == 2
    assert _count(read_prompt_set, tmp_path / "empty.json", "") == 1
