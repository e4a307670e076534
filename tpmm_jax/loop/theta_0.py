"""Where theta_0 comes from, a source, a function or the workdir, and its storing."""

import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax

from tpmm_jax.axes import Params
from tpmm_jax.config import ModelSource
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import once
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.run import ADAPTERS
from tpmm_jax.models import Decoder
from tpmm_jax.models.lora import WHOLE, init_adapters, targets
from tpmm_jax.rewards import import_object, left_alone
from tpmm_jax.stopping import refuse_exit
from tpmm_jax.store import Base, Trajectory
from tpmm_jax.store.digests import (
    check_folder,
    list_folder,
    lost_files,
    write_listed,
)
from tpmm_jax.store.files import write_text
from tpmm_jax.weights.description import (
    read_config,
    read_generation,
    write_description,
)
from tpmm_jax.weights.loading import adapters_base, resolve
from tpmm_jax.weights.source import Source
from tpmm_jax.weights.tokenizer import read_tokenizer

# (name, revision, base) -> what training begins with.
Find = Callable[[str, str | None, str | None], Source]


def find_model(
    model: ModelSource,
    workdir: pathlib.Path,
    console: RunConsole,
    started: bool,
    find: Find = resolve,
) -> Source:
    """Returns theta_0: as described in a started run, else from its source."""
    described = workdir / "model"
    if started:
        _describe_again(model, workdir, console, find)
        check_folder(described)
        return Source(
            read_config(described),
            read_tokenizer(described),
            {"source": str(workdir)},
            _not_needed,
            generation=read_generation(described),
        )
    return _find_source(model, workdir, console, find)


def _find_source(
    model: ModelSource, workdir: pathlib.Path, console: RunConsole, find: Find
) -> Source:
    name, made = model.source, workdir / "theta_0"
    if ":" in name and not pathlib.Path(name).exists():
        made_from(made, name, lambda: build_model(name, made, console))
        name = str(made)
    return find(name, model.revision, model.base)


def _describe_again(
    model: ModelSource, workdir: pathlib.Path, console: RunConsole, find: Find
) -> None:
    """Takes files of the model's description that went missing from its source again.

    Raises:
      CorruptCheckpoint: the source does not give what it was.
    """
    described = workdir / "model"
    if not (lost := lost_files(described)):
        return
    source = _find_source(model, workdir, console, find)
    with tempfile.TemporaryDirectory() as folder:
        again = pathlib.Path(folder)
        write_description(
            source.config, source.tokenizer, "float32", again, source.generation
        )
        for name in lost:
            found = again / name
            data = found.read_bytes() if found.exists() else b""
            write_listed(described / name, data)
    console.note(f"{described}: {', '.join(lost)} taken from the source again")


def _not_needed(decoder: Decoder, dtype: str) -> Any:
    raise BadInput(
        "the trajectory lost theta_0, which the model's description beside it still "
        "belongs to; start a new workdir"
    )


def made_from(path: pathlib.Path, source: str, make: Callable[[], None]) -> None:
    """Calls ``make`` unless ``path`` was made from ``source`` before."""
    mark = path.with_name(path.name + ".source")

    def act() -> None:
        if path.exists() and mark.exists() and mark.read_text() == source:
            return
        mark.unlink(missing_ok=True)
        make()
        write_text(mark, source)

    once(act, f"make {path}")


def build_model(name: str, directory: pathlib.Path, console: RunConsole) -> None:
    """Calls "module:function" with (directory, console); it appears whole or not."""
    build = import_object(name, "model.source")
    shutil.rmtree(directory, ignore_errors=True)
    for left in directory.parent.glob(".building-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".building-") as tmp:
        target = pathlib.Path(tmp) / "model"
        target.mkdir()
        what = f"model.source = {name}"
        with left_alone(what), refuse_exit(what):
            build(target, console)
        target.rename(directory)


def base_record(workdir: pathlib.Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns where the base of a run's adapters is read from again, as JSON.

    "seed" is of a reward model's head, if the base is a causal model.
    """
    seed = {"seed": origin["seed"]} if "seed" in origin else {}
    if "commit" in origin:
        return {"source": origin["source"], "commit": origin["commit"], **seed}
    path = pathlib.Path(origin["source"]).absolute()
    inside = path.is_relative_to(workdir.absolute())
    place = path.relative_to(workdir.absolute()) if inside else path
    return {"source": str(place), **seed}


def check_adapter(model: ModelSource, source: Source) -> None:
    """Refuses to continue training a PEFT adapter under another configuration.

    Raises:
      BadInput: names each field that differs.
    """
    lora = model.adapters
    if lora is None or source.adapter is None:
        return
    found = source.adapter.lora
    have = [found.rank, found.alpha, found.rslora, list(targets(found))]
    want = [lora.rank, lora.alpha, lora.rslora, list(targets(lora))]
    differing = [
        f"model.lora.{name} is {b}, the adapter has {a}"
        for name, a, b in zip(("rank", "alpha", "rslora", "targets"), have, want)
        if a != b
    ]
    if differing:
        raise BadInput(
            f"{model.source} is an adapter to be trained further, but "
            + "; ".join(differing)
            + ". Set the same values, or start from the merged model: write it with "
            "tpmm export and use that as model.source"
        )


def check_codec(codec: TextCodec, name: str) -> None:
    """Refuses a model whose texts cannot be trained on or compared.

    Args:
      name: the model's, for messages.

    Raises:
      BadInput: no tokenizer, no EOS, no chat template, or another model's tokenizer.
    """
    tokenizer = codec.tokenizer
    if tokenizer is None:
        raise BadInput(
            f"{name} has no tokenizer (tokenizer.json), and one is needed: copy it "
            "from the model's publisher into that directory"
        )
    codec.require_eos()
    if codec.chat and not tokenizer.chat_template:
        raise BadInput(
            f"chat is on, but the tokenizer of {name} has no chat template; use an "
            "instruction-tuned model, put a chat_template.jinja into a copy of its "
            "directory, or switch chat off"
        )
    size, rows = len(tokenizer), codec.num_embeddings
    # Special tokens that stand in a text are refused there, row by row.
    added = tokenizer.added_tokens_decoder
    if not all(i in added and added[i].special for i in range(rows, size)):
        raise BadInput(
            f"{name}: the tokenizer has {size} tokens, the model only {rows} "
            "embeddings; they do not belong together"
        )


def _whole(structure: Params, under: Source, decoder: Decoder) -> Params:
    """Returns the leaves that are trained whole beside the adapters, as they begin."""
    names = [name for name in WHOLE if name in structure]
    if not names:
        return {}
    params = under.read(decoder, "float32")
    return {name: params[name] for name in names}


def store_first(
    source: Source,
    decoder: Decoder,
    trajectory: Trajectory,
    seed: int,
    workdir: pathlib.Path,
    console: RunConsole,
    title: str = "load theta_0",
) -> None:
    """Reads theta_0's weights and appends them, or LoRA's zero product, as step 0."""
    described = workdir / "model"

    def describe() -> None:
        shutil.rmtree(described, ignore_errors=True)
        described.mkdir()
        write_description(
            source.config, source.tokenizer, "float32", described, source.generation
        )
        list_folder(described)

    once(describe, f"describe {described}")
    with console.phase(title, 1, "models") as bar:
        meta = {"iteration": 0, **source.origin}
        if decoder.lora is None:
            trajectory.append(0, source.read(decoder, "float32"), meta)
        else:
            adapted = source.adapter
            under = source if adapted is None else adapted.base
            meta["base"] = base_record(workdir, under.origin)
            trajectory.base = Base(
                lambda: under.read(decoder, "float32"), under.origin["source"], ""
            )
            if adapted is not None:
                params = adapted.read(decoder)
            else:
                key = jax.random.fold_in(jax.random.key(seed), ADAPTERS)
                structure = decoder.abstract_params()
                whole = _whole(structure, under, decoder)
                params = init_adapters(structure, decoder.lora, key, **whole)
            trajectory.append(0, params, meta)
            trajectory.base = adapters_base(workdir, decoder)
        bar.advance(1)
