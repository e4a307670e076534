"""Answering a file of prompts, a batch at a time, into a JSONL that can be continued.

FILE.jsonl holds one row per prompt; FILE.jsonl.source what they were made from, so that
rows of two models or two seeds never meet in one file.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from tpmm_jax.commands._answers import Settings
from tpmm_jax.config.fields import changes
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import as_dicts, without_ids
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.errors import BadInput
from tpmm_jax.facade import codec_of, completion_batches, encode
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop import prompts
from tpmm_jax.store.files import (
    append_lines,
    read_json,
    read_lines_repaired,
    write_json,
    write_text,
)
from tpmm_jax.weights.source import Model


def read_prompts(
    source: str,
    data: DataConfig,
    note: Callable[[str], None],
    *,
    auto_chat: bool,
) -> list[Any]:
    """Returns each prompt as a text, a message list or a list of token ids.

    Args:
      source: as data.prompts of a config: a file, a hub name or "module:function".
      data, note, auto_chat: see ``loop.prompts.read_prompts``.

    Raises:
      BadInput: nothing there, no prompt in it, or rows that are not prompts.
    """
    found = prompts.read_prompts(source, "--prompts", data, note, auto_chat=auto_chat)
    return [plain(prompt) for prompt in found]


def plain(prompt: Prompt) -> Any:
    """Returns a prompt's content as JSON has it."""
    if isinstance(prompt.content, str):
        return prompt.content
    if without_ids(prompt.content) is None:
        return list(prompt.content)
    return as_dicts(prompt.content)  # type: ignore[arg-type]


def prepare(codec: TextCodec, prompts: Sequence[Any], settings: Settings) -> list[Any]:
    """Returns the prompts' token ids, all of them checked."""
    whole = []
    for number, prompt in enumerate(prompts):
        try:
            whole.append(settings.conversation(prompt))
        except BadInput as error:
            raise BadInput(f"prompt {number}: {error}") from None
    return encode(codec, whole)


def answer_rows(
    model: Model,
    prompts: Sequence[Any],
    settings: Settings,
    start: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """Yields a batch of rows: prompt, responses (texts), response_ids."""
    codec = codec_of(model, chat=settings.chat)
    ids = prepare(codec, prompts, settings)
    for places, completions in completion_batches(
        model,
        ids,
        settings.sampling,
        seed=settings.seed,
        num_samples=settings.num_samples,
        batch_size=settings.batch_size,
        start=start,
    ):
        rows = []
        for place, some in zip(places, completions):
            row = {"prompt": prompts[place]}
            if codec.tokenizer is not None:
                row["responses"] = codec.completion_texts(ids[place], some)
            rows.append({**row, "response_ids": some})
        yield rows


def answer_file(
    model: Model,
    prompts: Sequence[Any],
    settings: Settings,
    output: pathlib.Path,
    console: RunConsole,
) -> None:
    """Writes one row per prompt; those of an interrupted run are kept.

    Raises:
      BadInput: the file is there and was made from something else.
      StorageError: the disk refuses.
    """
    made_from = {
        "model": model.origin,
        "compute_dtype": model.decoder.compute_dtype,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        **asdict(settings),
    }
    done = _continued(output, made_from, len(prompts), settings.batch_size)
    if done == len(prompts):
        console.note(f"{output} is complete: {done} rows")
        return
    if done:
        console.note(f"{output} holds {done} of {len(prompts)} rows; continuing there")
    write_json(_mark(output), made_from)
    with console.phase("sample", len(prompts), "prompts") as bar:
        bar.advance(done)
        for rows in answer_rows(model, prompts, settings, done):
            append_lines(output, [json.dumps(row, ensure_ascii=False) for row in rows])
            bar.advance(len(rows))
    console.note(f"wrote {output}")


def check_file(output: pathlib.Path) -> None:
    """Refuses, before a model is loaded, a file that no command here made."""
    if output.is_dir():
        raise BadInput(f"{output} is a folder; give a file to write, such as out.jsonl")
    if output.exists() and output.stat().st_size and not _mark(output).exists():
        raise BadInput(
            f"{output} exists and was not written by this command ({_mark(output)} is "
            "missing); choose another --output, or remove it"
        )


def _mark(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(output.name + ".source")


def _continued(
    output: pathlib.Path, made_from: dict[str, Any], count: int, batch_size: int
) -> int:
    """Returns how many rows are done, in whole batches; cuts what lies beyond."""
    lines = read_lines_repaired(output)
    if not lines:
        return 0
    changed = changes(read_json(_mark(output)), made_from)
    if changed:
        raise BadInput(
            f"{output} holds {len(lines)} rows of another command:\n  "
            + "\n  ".join(changed)
            + "\nChange it back to continue, or choose another --output"
        )
    done = count if len(lines) == count else len(lines) // batch_size * batch_size
    if done < len(lines):
        write_text(output, "".join(line + "\n" for line in lines[:done]))
    return done
