"""Lines of a run's files: equal after a round trip, or refused by place and field."""

import json
import pathlib

import pytest

from tpmm_jax.data.records import Judgement, LabelledPair, Rollout, parse_lines, to_line
from tpmm_jax.errors import CorruptCheckpoint, StorageError
from tpmm_jax.store.records import append_records, read_records, resume_records

ROLLOUT = {
    "prompt": "p",
    "responses": ["a", "\ud800"],
    "rewards": [0.1, 2],
    "scores": {"calm": [1.0, 1e-300]},
    "held_out": True,
    "prompt_ids": [3],
    "response_ids": [[4, 5], [6]],
}
# The fields before those of a judge that labels; they keep their places.
FIRST = dict.fromkeys(["prompt", "responses", "rewards"])
IDS = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
REWARDS = {"chosen_reward": 1.5, "rejected_reward": -0.5}
LABELS = {"flipped": False, "held_out": True}
JUDGEMENT = {
    "set": "evaluation", "judge": "even", "against": "theta_0", "prompt": 0,
    "sample": 1, "first": 0.25, "second": 0.75, "win": 0.25,
}  # fmt: skip


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (Rollout, ROLLOUT),
        (Rollout, without(ROLLOUT, "rewards")),
        (Rollout, without(ROLLOUT, "scores")),
        (LabelledPair, {**PAIR, **REWARDS, **LABELS, **IDS}),
        (LabelledPair, {**PAIR, "origin": "set.jsonl:7", **LABELS, **IDS}),
        (Rollout, {**FIRST, "unread": ["hm"], "disagreed": 1, **ROLLOUT}),
        (Judgement, JUDGEMENT),
        (Judgement, {**JUDGEMENT, "unread": 0, "replies": ["B", "A"]}),
    ],
)
def test_a_line_is_equal_after_a_round_trip(kind: type, row: dict) -> None:
    line = json.dumps(row)
    (record,) = parse_lines(kind, [line], None)
    assert to_line(record) == line


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "Expecting"),
        ("[]", "not a JSON object"),
        (b"\xff", "utf-8"),
        (json.dumps(without(ROLLOUT, "prompt_ids")), "prompt_ids is missing"),
        (json.dumps({**ROLLOUT, "held_out": 1}), "held_out is 1; wanted"),
        (json.dumps({**ROLLOUT, "prompt_ids": [True]}), "prompt_ids is"),
        (json.dumps({**ROLLOUT, "rewards": ["1", 2]}), "rewards is"),
        (json.dumps({**ROLLOUT, "rewards": [1.0]}), "as many rewards"),
        (json.dumps({**ROLLOUT, "scores": {"calm": 3}}), "scores is"),
        (json.dumps({**ROLLOUT, "response_ids": [[1], [2.5]]}), "response_ids is"),
    ],
)
def test_a_broken_line_is_named(
    tmp_path: pathlib.Path, bad: str | bytes, said: str
) -> None:
    path, good = tmp_path / "rollouts.jsonl", json.dumps(ROLLOUT).encode()
    data = bad if isinstance(bad, bytes) else bad.encode()
    path.write_bytes(good + b"\n" + data + b"\n")
    with pytest.raises(CorruptCheckpoint, match=r"rollouts\.jsonl, line 2") as error:
        read_records(path, Rollout)
    assert said in str(error.value)


def test_a_file_is_cut_to_its_whole_batches(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "judgements.jsonl"
    (one,) = parse_lines(Judgement, [json.dumps(JUDGEMENT)], None)
    append_records(path, [one] * 5, at=0)
    with path.open("a") as file:
        file.write('{"set": ')
    assert resume_records(path, Judgement, lambda n: n // 2 * 2) == [one] * 4
    assert read_records(path, Judgement) == [one] * 4
    assert resume_records(None, Judgement, lambda n: n) == []


def test_a_missing_file_does_not_pass_for_an_empty_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StorageError, match=r"pairs\.jsonl: No such file"):
        read_records(tmp_path / "pairs.jsonl", LabelledPair)
