"""Writes a model as a Hugging Face directory: tpmm export runs/x/trajectory@4

Exit codes: 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped.
"""

import argparse
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax

from tpmm_jax.commands._card import (
    TEMPLATE,
    local_name,
    merge_facts,
    run_facts,
    write_card,
)
from tpmm_jax.commands._experts_card import experts_text
from tpmm_jax.commands._line import guarded
from tpmm_jax.commands._merges import warn_if_faint
from tpmm_jax.commands._peft import read_step, save_adapter
from tpmm_jax.commands._push import check_push, push
from tpmm_jax.commands._reward_card import (
    REWARD_TEMPLATE,
    pooling_facts,
    reader_facts,
    reward_facts,
)
from tpmm_jax.commands.options.export import parse_args
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.versions import versions
from tpmm_jax.merging import signal_text, signal_to_rounding
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.store import tree_digest
from tpmm_jax.weights.hub import REWARD, TRAJECTORY, is_hub_id
from tpmm_jax.weights.loading import check_dtype, resolve_any
from tpmm_jax.weights.saving import check_output, save
from tpmm_jax.weights.source import Model, Source

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
Facts: TypeAlias = Mapping[str, Any]


def parse_size(text: str) -> int:
    """Returns bytes of "500MB", "4GB" or "2GiB".

    Raises:
      BadInput: another form, or less than a megabyte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1e6:
        raise BadInput(
            f"--max-shard-size is {text!r}; wanted 1MB or more, such as 500MB, 4GB or "
            "2GiB"
        )
    return int(float(match[1]) * unit)


def read_model(
    source: Source, facts: Facts | None, dtype: str, console: RunConsole
) -> tuple[Model, str]:
    """Returns the model in ``dtype`` and the weights' digest in float32.

    Warns where the cast would undo the training.
    """
    decoder = Decoder(source.config)
    with console.phase("read", 1, "models") as bar:
        params = source.read(decoder, "float32")
        digest = tree_digest(params)
        bar.advance(1)
    if dtype != "float32" and facts is not None and facts["step"] > 0:
        kept = REWARD if source.config.output == "reward" else TRAJECTORY
        (start,) = resolve_any([f"{run_folder(source)}/{kept}@0"])
        base = start.read(decoder, "float32")
        ratio = signal_to_rounding(params, base, dtype)
        del base
        console.note(signal_text(ratio, dtype))
        warn_if_faint(console, ratio, "what the run changed", "its change to theta_0")
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return source.model(decoder, params), digest


def base_model(args: argparse.Namespace, source: Source, facts: Facts | None) -> str:
    """Returns the hub id that the card names, or "" where none is known."""
    if args.base_model is not None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.base_model):
            raise BadInput(
                f"--base-model is {args.base_model!r}; wanted a hub id such as org/name"
            )
        return args.base_model
    if facts is not None:
        return facts["first_hub"] or ""
    return source.origin["source"] if "commit" in source.origin else ""


def card(
    args: argparse.Namespace,
    source: Source,
    facts: Facts | None,
    digest: str,
    merge: Facts | None,
    base: str,
    lora: LoraConfig | None = None,
) -> str:
    """Returns the model card, of adapters if there is a LoraConfig."""
    known = {f"{n} (run)": v for n, v in (facts["versions"] if facts else {}).items()}
    known |= {f"{n} (export)" if known else n: v for n, v in versions().items()}
    tags, rewards = ["tpmm_jax"], source.config.output == "reward"
    if rewards:
        tags.append("reward-model")
    elif facts is not None:
        loss = facts["config"]["loss"]["name"]
        losses = [loss] if isinstance(loss, str) else loss  # or a sum of them
        tags += ["preference-optimization", *losses]
    if merge is not None:
        tags.append("merge")
    if lora is not None:
        tags.append("lora")
    experts = "" if args.peft else experts_text(pathlib.Path(args.model))
    return write_card(
        REWARD_TEMPLATE if rewards else TEMPLATE,
        **pooling_facts(source.config),
        **reader_facts(source.config, peft=args.peft),
        experts=experts,
        name=args.name or pathlib.Path(args.output).absolute().name,
        tags=tags,
        base_model=base,
        lora=lora,
        license=args.license,
        parameters=f"{Decoder(source.config).num_params:,}",
        family=source.config.family,
        dtype=check_dtype(args.dtype),
        chat=bool(getattr(source.tokenizer, "chat_template", None)),
        run=facts,
        merge=merge,
        source=local_name(source.origin["source"]),
        commit=source.origin.get("commit"),
        digest=digest,
        versions=list(known.items()),
    )


def run(args: argparse.Namespace, console: RunConsole) -> None:
    """Checks everything, reads, writes."""
    dtype, size = check_dtype(args.dtype), parse_size(args.max_shard_size)
    check_output(args.output)
    if args.push is not None:
        check_push(args.push, args.private)
    (source,) = resolve_any([args.model], args.base, args.revision)
    if args.peft:
        run_peft(args, source, console)
        return
    each = 2 if dtype == "bfloat16" else 4
    check_output(args.output, each * Decoder(source.config).num_params)
    facts = facts_of(source)
    merge = merge_facts(pathlib.Path(args.model))
    base = base_model(args, source, facts)
    if source.tokenizer is None:
        console.warn(
            f"{args.model} has no tokenizer, so {args.output} will have none: "
            "transformers will load the model, but pipelines will not work"
        )
    if merge is not None and dtype == "bfloat16" and merge["bfloat16_ratio"]:
        change = f"its change to {merge['rows'][0]['source']}"
        warn_if_faint(console, merge["bfloat16_ratio"], "the merge", change)
    model, digest = read_model(source, facts, dtype, console)
    text = card(args, source, facts, digest, merge, base)
    files = {"README.md": text}
    with console.phase("write", 1, "models") as bar:
        save(model, args.output, max_shard_bytes=size, files=files)
        bar.advance(1)
    finish(args, source, base, console)


def facts_of(source: Source) -> dict[str, Any] | None:
    """Returns what is known of a run's model; None for others."""
    find = reward_facts if source.config.output == "reward" else run_facts
    return find(source.origin["source"])


def run_folder(source: Source) -> pathlib.Path:
    """Returns the workdir of a run's model."""
    return pathlib.Path(source.origin["source"]).parent


def run_peft(args: argparse.Namespace, source: Source, console: RunConsole) -> None:
    """Writes a step's adapter as a PEFT directory."""
    if check_dtype(args.dtype) != "float32" or args.max_shard_size != "4GB":
        raise BadInput(
            "--dtype and --max-shard-size are for whole weights: with --peft the "
            "adapter is one file in float32; leave them out"
        )
    facts = facts_of(source)
    with console.phase("read", 1, "adapters") as bar:
        stored = read_step(args.model, source, args.base_model)
        bar.advance(1)
    base = stored.base if is_hub_id(stored.base) else ""
    if base and args.base_model:
        console.warn(
            f"{base} was not compared with the weights that the run began with; the "
            "adapter gives the run's policy over those alone"
        )
    text = card(args, source, facts, stored.digest, None, base, stored.lora)
    with console.phase("write", 1, "adapters") as bar:
        save_adapter(stored, source, args.output, text)
        bar.advance(1)
    if not base:
        console.note(f"adapter_config.json names the base by its path: {stored.base}")
    finish(args, source, base, console)


def finish(
    args: argparse.Namespace, source: Source, base: str, console: RunConsole
) -> None:
    """Says what the card leaves open and how the directory is used."""
    unstated = [
        f"{what} ({option})"
        for what, option, value in (
            ("no license", "--license", args.license),
            ("no base model", "--base-model", base),
        )
        if not value
    ]
    if unstated:
        console.note(f"the card states {' and '.join(unstated)}")
    theirs = reader_facts(source.config, peft=args.peft)
    library, reader = theirs["library"], theirs["reader"]
    ours, labels = f"tpmm sample {args.output}", ""
    if source.config.output == "reward":
        ours = f"--set scorer.name=reward:{args.output}   in tpmm train"
        # A causal base says nothing of labels, of which transformers would take two.
        labels = ", num_labels=1" if args.peft else ""
    loads = f'{reader}.from_pretrained("{args.output}"{labels})   in {library}'
    card = f"{args.output}/README.md   the model card"
    if args.push is not None:
        found = facts_of(source)
        workdir = None if found is None else run_folder(source)
        with console.phase("push", 1, "commits") as bar:
            url = push(args.push, pathlib.Path(args.output), workdir, args.private)
            bar.advance(1)
        console.note(f"pushed: {url}")
    console.next_steps([ours, *([loads] if reader else []), card])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(run, parse_args(argv))
