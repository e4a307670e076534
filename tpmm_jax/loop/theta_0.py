"""Where theta_0 comes from: a source, a function that builds it, or the workdir."""

import pathlib
import shutil
import tempfile
from typing import Any

from tpmm_jax.config import Config
from tpmm_jax.data.tokens import require_eos
from tpmm_jax.errors import BadInput
from tpmm_jax.loading import Source, end_ids, read_config, read_tokenizer, resolve
from tpmm_jax.loop.prompts import made_from
from tpmm_jax.models import Decoder
from tpmm_jax.report.console import RunConsole
from tpmm_jax.rewards import import_object


def find_model(
    config: Config, workdir: pathlib.Path, console: RunConsole, started: bool
) -> Source:
    """Returns theta_0: as described in a started run, else from its source."""
    described, made = workdir / "model", workdir / "theta_0"
    if started:
        return Source(
            read_config(described),
            read_tokenizer(described),
            {"source": str(workdir)},
            _not_needed,
        )
    name = config.model.source
    if ":" in name and not pathlib.Path(name).exists():
        made_from(made, name, lambda: build_model(name, made, console))
        name = str(made)
    return resolve(name, config.model.revision)


def _not_needed(decoder: Decoder, dtype: str) -> Any:
    raise BadInput(
        "the trajectory lost theta_0, which the model's description beside it still "
        "belongs to; start a new workdir"
    )


def build_model(name: str, directory: pathlib.Path, console: RunConsole) -> None:
    """Calls "module:function" with (directory, console); it appears whole or not."""
    build = import_object(name, "model.source")
    shutil.rmtree(directory, ignore_errors=True)
    for left in directory.parent.glob(".building-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".building-") as tmp:
        target = pathlib.Path(tmp) / "model"
        target.mkdir()
        build(target, console)
        target.rename(directory)


def check_tokenizer(source: Source, name: str, *, chat: bool) -> tuple[int, ...]:
    """Returns the ids that end a completion.

    Args:
      name: the model's, for messages.
      chat: whether prompts are written with the chat template.

    Raises:
      BadInput: no tokenizer, no EOS, no chat template, or another model's tokenizer.
    """
    if source.tokenizer is None:
        raise BadInput(
            f"{name} has no tokenizer (tokenizer.json), and one is needed: copy it "
            "from the model's publisher into that directory"
        )
    require_eos(source.tokenizer)
    if chat and not source.tokenizer.chat_template:
        raise BadInput(
            f"chat is on, but the tokenizer of {name} has no chat template; use an "
            "instruction-tuned model, or switch chat off"
        )
    size = len(source.tokenizer)
    if size > source.config.vocab_size:
        raise BadInput(
            f"{name}: the tokenizer has {size} tokens, the model only "
            f"{source.config.vocab_size} embeddings; they do not belong together"
        )
    return end_ids(source.config, source.tokenizer)
