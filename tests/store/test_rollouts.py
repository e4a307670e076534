"""The scored answers of a run's files."""

import json

import pytest

from tpmm_jax.data.messages import Message
from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.store.records import write_records
from tpmm_jax.store.rollouts import read_rollouts


def rollout(prompt, rewards, held_out=False):
    return Rollout(
        prompt=prompt,
        responses=[f" {n}" for n in rewards or (1, 2)],
        rewards=rewards,
        held_out=held_out,
        prompt_ids=[1],
        response_ids=[[5, n] for n in range(len(rewards or (1, 2)))],
    )


def write_ends(workdir, ids):
    path = workdir / "model" / "generation_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"eos_token_id": ids}))


def test_the_scored_answers_of_a_run_are_read_with_their_iteration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"chat": True}}))
    write_ends(tmp_path, [1, 7])
    for number, some in enumerate(
        ([rollout("user: a\nb", [1.0, 2.0])], [rollout("c", [3.0], held_out=True)]), 1
    ):
        folder = tmp_path / "iterations" / f"{number:03d}"
        folder.mkdir(parents=True)
        write_records(folder / "rollouts.jsonl", some)
    one, second, last = read_rollouts(tmp_path)
    assert [x.ended for x in (one, second, last)] == [False, True, False]
    assert one.prompt == (Message("user", "a\nb"),) and one.score == 1
    assert (one.unit, one.held_out, one.answer) == ("001", False, " 1.0")
    assert one.origin.endswith("001/rollouts.jsonl:1 answer 1")
    assert (last.prompt, last.unit, last.held_out) == ("c", "002", True)


def test_a_folder_without_scored_answers_is_refused(tmp_path):
    with pytest.raises(BadInput, match="the workdir of a run of tpmm train that samp"):
        read_rollouts(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    folder = tmp_path / "iterations" / "001"
    folder.mkdir(parents=True)
    write_records(folder / "rollouts.jsonl", [rollout("a", None)])
    with pytest.raises(BadInput, match=r"generation_config.json has no eos_token_id"):
        read_rollouts(tmp_path)
    write_ends(tmp_path, 1)
    with pytest.raises(BadInput, match=r"line 1 has no rewards"):
        read_rollouts(tmp_path)
