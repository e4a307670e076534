"""The scored answers of a run, read from its files."""

import json
import pathlib

from tpmm_jax.data.messages import Conversation, Message, Written, order_fault
from tpmm_jax.data.problems import Place
from tpmm_jax.data.ratings import Scored
from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import BadInput, nearest_path
from tpmm_jax.store.files import storage_errors
from tpmm_jax.store.records import read_growing_records

_ROLES = ("system", "user", "assistant")


def read_rollouts(workdir: str | pathlib.Path) -> list[Scored]:
    """Returns every answer that a run's policies gave in training, with its reward.

    Answers are compared within an iteration. Under a chat template a prompt of messages
    is written one line per turn ("user: ..."); it becomes messages again.

    Raises:
      BadInput: the folder holds no run, or no rewards, or what ends an answer is lost.
      CorruptCheckpoint: a line is not what the run wrote.
    """
    folder = pathlib.Path(workdir).expanduser()
    files = sorted(folder.glob("iterations/*/rollouts.jsonl"))
    if not files:
        raise BadInput(
            f"data.rollouts: {workdir} holds no iterations/*/rollouts.jsonl; wanted "
            "the workdir of a run of tpmm train that samples and scores (data.prompts)"
            f"{nearest_path(folder)}"
        )
    chat, ends = _chat(folder), _ends(folder)
    answers = []
    for file in files:
        for number, one in enumerate(read_growing_records(file, Rollout), start=1):
            if one.rewards is None:
                raise BadInput(
                    f"data.rollouts: {file}, line {number} has no rewards; wanted "
                    "answers that a scorer rated"
                )
            prompt = _as_prompt(one.prompt) if chat else one.prompt
            rated = zip(one.responses, one.rewards, one.response_ids)
            for at, (text, reward, ids) in enumerate(rated, start=1):
                answers.append(
                    Scored(
                        prompt,
                        text,
                        reward,
                        Place(f"{file}:{number} answer {at}", str(file), number),
                        unit=file.parent.name,
                        held_out=one.held_out,
                        ended=not ends.isdisjoint(ids[-1:]),
                    )
                )
    return answers


def _chat(folder: pathlib.Path) -> bool:
    """Whether the run wrote its prompts with a chat template."""
    path = folder / "config.json"
    with storage_errors(path):
        config = json.loads(path.read_text(encoding="utf-8"))
    return bool(config.get("data", {}).get("chat", False))


def _ends(folder: pathlib.Path) -> set[int]:
    """The ids at which the run's policies end an answer."""
    path = folder / "model" / "generation_config.json"
    with storage_errors(path):
        text = path.read_text(encoding="utf-8") if path.exists() else "{}"
    ids = json.loads(text).get("eos_token_id")
    ends = set(ids if isinstance(ids, list) else [ids])
    if not all(isinstance(token, int) for token in ends):
        raise BadInput(
            f"data.rollouts: {path} has no eos_token_id, which tells the answers that "
            "were cut from those that ended; restore the file from a copy"
        )
    return ends


def _as_prompt(text: str) -> Written:
    """Messages where every one of them begins a line with its role; else the text."""
    turns: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        role, colon, rest = line.partition(": ")
        if colon and role in _ROLES:
            turns.append((role, [rest]))
        elif not turns:
            return text
        else:
            turns[-1][1].append(line)
    messages: Conversation = tuple(Message(r, "\n".join(said)) for r, said in turns)
    return text if order_fault(messages, last="user") else messages
