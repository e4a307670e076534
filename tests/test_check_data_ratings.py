"""tpmm check_data --ratings: what a reward run would make of rated texts."""

import json
import pathlib
import sys

import pytest

from tpmm_jax.commands import check_data

sys.path.insert(0, str(pathlib.Path(__file__).parent / "data"))
import tokenizers_for_tests as small

LINES = [f"{n}\t{n - 2}\tthe sky is {'blue ' * n}" for n in range(6)]


@pytest.fixture
def run(tmp_path, capsys):
    small.metaspace().save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "snippets.txt"
    path.write_text("\n".join(LINES) + "\n")

    def check(*options):
        given = [str(path), "--ratings", "--columns", "id,rating,text", *options]
        code = check_data.main([str(one) for one in given])
        return (code, *capsys.readouterr())

    return check


def test_ratings_are_counted_with_their_margins(run, tmp_path):
    code, out, _ = run("--json", "--model", tmp_path / "tokenizer")
    found = json.loads(out)
    assert code == 0 and found["rows"] == 6 and found["unread_columns"] == ["id"]
    assert found["counts"]["answers"] == 6 and found["counts"]["rows_kept"] == 7
    margins = found["margins"]
    assert margins["min"] >= 1 and margins["max"] <= 5 and margins["count"] == 7
    assert margins["share_zero"] == margins["share_negative"] == 0
    # Without a tokenizer the same pairs of texts.
    code, out, _ = run("--json")
    assert json.loads(out)["margins"] == margins


def test_the_table_says_what_is_dropped_and_how_margins_lie(run, tmp_path):
    code, out, err = run("--model", tmp_path / "tokenizer", "--max-length", 8)
    said = " ".join((out + err).split())
    assert code == 0 and "margins of" in said and "median" in said
    assert "of these over the limit" in said and "rows longer than 8 are" in said


@pytest.mark.parametrize(
    "options, said",
    [
        (["--max-length", "9"], "--max-length concerns tokens"),
        (["--prompts"], "--ratings says what FILE holds"),
        (["--fields", "chosen=x"], "'chosen' is not a part of a row of data.ratings"),
        (["--implicit-prompt"], "--implicit-prompt concerns pairs"),
    ],
)
def test_options_that_say_nothing_of_ratings_are_refused(options, said, run):
    code, _, err = run(*options)
    assert code == 2 and said in " ".join(err.split())
