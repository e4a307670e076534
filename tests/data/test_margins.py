"""Margins of pairs: where they are read, and what becomes of those that are bad."""

import json

import datasets
import pytest
import tokenizers_for_tests as small

from tpmm_jax.commands._rows import parse_fields
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import load_rows, prepare_pairs
from tpmm_jax.errors import BadInput

TEXT = {"prompt": "q", "chosen": " a", "rejected": " b"}
CODEC = small.codec(small.byte_level())
SCORED = {"prompt": "q", "responses": [" a", " b", " c"], "scores": [2, 3.5, 1]}


@pytest.fixture
def save(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(
    "more, wanted",
    [
        ({"margin": 0.5}, 0.5),
        ({"margin": "1e-1"}, 0.1),
        ({"margin": -2}, -2),
        ({"score_chosen": 3, "score_rejected": "1.5"}, 1.5),
        ({"chosen-rating": 1, "rejected-rating": 4}, -3),
        ({"margin": 1, "score_chosen": 3, "score_rejected": 1}, 1),
        ({"margin": None, "chosen_reward": 3, "rejected_reward": 1}, 2),
        ({}, None),
    ],
)
def test_the_margin_of_a_row_reaches_its_row_of_ids(more, wanted, save):
    found = prepare_pairs(save(TEXT | more), DataConfig(), CODEC)
    found.problems.settle()
    assert [pair.margin for pair in found.pairs] == [wanted]
    assert [row.margin for row in found.rows] == [wanted]
    assert found.counts["with_margin"] == (wanted is not None)


def test_scored_answers_differ_by_their_scores_and_ranks_say_nothing(save):
    data = DataConfig(scored_pairs="all")
    found = prepare_pairs(save(SCORED), data, CODEC, margins=True)
    sides = [(p.chosen, p.rejected, p.margin) for p in found.pairs]
    assert sides == [(" b", " a", 1.5), (" b", " c", 2.5), (" a", " c", 1)]
    ranks = {k: v for k, v in SCORED.items() if k != "scores"} | {"ranks": [2, 1, 3]}
    found = prepare_pairs(save(ranks), data, CODEC)
    assert [pair.margin for pair in found.pairs] == [None] * 3


def test_a_margin_of_a_column_of_another_name(save):
    data = DataConfig(pairs="x", fields=parse_fields("margin=gap"))
    data.validate()
    source = save(TEXT | {"gap": 2, "margin": 9}, TEXT | {"gap": None, "margin": 9})
    found = prepare_pairs(source, data, CODEC)
    assert [pair.margin for pair in found.pairs] == [2, None]
    missing = prepare_pairs(save(TEXT), data, CODEC).problems.found
    assert "field 'gap' is missing" in missing[0].reason and missing[0].fatal
    both = prepare_pairs(save(SCORED | {"gap": 1}), data, CODEC, margins=True)
    assert "named as the margin, but this row has several" in both.problems.found[0][2]


BAD = [
    ({"margin": "n/a"}, "margin", "field 'margin' is 'n/a'; wanted a finite number"),
    ({"margin": "nan"}, "margin", "field 'margin' is 'nan'"),
    ({"margin": "inf"}, "margin", "field 'margin' is 'inf'"),
    ({"margin": True}, "margin", "field 'margin' is a boolean"),
    ({"margin": [1]}, "margin", "field 'margin' is a list"),
    ({"margin": "n/a", "score_chosen": 2, "score_rejected": 1}, "margin", "'n/a'"),
    ({"score_chosen": 2}, "score_rejected", "is missing beside 'score_chosen'"),
    ({"score_chosen": "?", "score_rejected": 1}, "score_chosen", "is '?'"),
    ({}, None, "no margin, while 2 of 3 pairs have one (margin)"),
    (
        {"score_chosen": 2, "score_rejected": 1},
        None,
        "comes from score_chosen and score_rejected, that of 2 of 3 pairs from margin",
    ),
]


@pytest.mark.parametrize("more, field, said", BAD)
def test_a_bad_margin_is_refused_where_it_is_used_and_noted_elsewhere(
    more, field, said, save
):
    source = save(TEXT | {"margin": 1}, TEXT | more, TEXT | {"margin": 0})
    used = prepare_pairs(source, DataConfig(on_bad_rows="drop"), CODEC, margins=True)
    (defect,) = used.problems.found
    assert said in defect.reason and defect.field == field
    assert defect.origin == f"{source}:2" and not defect.fatal
    assert [row.margin for row in used.rows] == [1, 0]
    with pytest.raises(BadInput, match=r"rows.jsonl:2: .*margin|score"):
        load_rows(source, DataConfig(), CODEC, note=print, warn=print, margins=True)
    notes, warnings = [], []
    rows = load_rows(
        source, DataConfig(), CODEC, note=notes.append, warn=warnings.append
    )
    assert len(rows) == 3 and not warnings
    assert f"{source}:2" in notes[-1] and said in notes[-1]


def test_nan_in_a_table_is_a_bad_margin(tmp_path):
    source = str(tmp_path / "rows.parquet")
    rows = [TEXT | {"margin": 1.0}, TEXT | {"margin": float("nan")}]
    datasets.Dataset.from_list(rows).to_parquet(source)
    (defect,) = prepare_pairs(source, DataConfig(), CODEC, margins=True).problems.found
    assert "field 'margin' is nan" in defect.reason and defect.origin.row == 1


def test_margins_that_are_used_must_be_there(save):
    found = prepare_pairs(save(TEXT, TEXT), DataConfig(), CODEC, margins=True)
    (defect,) = found.problems.found
    assert defect.fatal and "no row has a margin; wanted a column margin" in defect[2]
