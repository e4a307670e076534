"""Prompts that a "module:function" returns: kept, and the same at every start."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prompts import parse_prompt
from tpmm_jax.errors import BadInput, user_lines
from tpmm_jax.hosts import once
from tpmm_jax.rewards import import_object, left_alone
from tpmm_jax.stopping import call_user
from tpmm_jax.store.files import write_text


def prompt_file(
    source: str, option: str, data: DataConfig, cache: pathlib.Path
) -> tuple[str, DataConfig]:
    """Returns what holds a source's prompts, and how they are read there.

    What a "module:function" returns is written to ``cache``, its name beside it.
    """
    if not is_function(source):
        return source, data
    function = import_object(source, option)

    def make() -> None:
        write_text(cache, made_lines(source, option, function, data.timeout))
        write_text(cache.with_name(cache.name + ".source"), source)

    once(make, f"prompts of {source}")
    return of_cache(cache, data)


def kept_file(
    source: str,
    option: str,
    data: DataConfig,
    cache: pathlib.Path,
    warn: Callable[[str], None],
) -> tuple[str, DataConfig]:
    """Returns the same of a run that has begun: of a function, the list of then.

    Raises:
      BadInput: the function returns another list now.
    """
    if not is_function(source) or not cache.exists():
        return prompt_file(source, option, data, cache)
    once(
        lambda: _compare(source, option, data, cache, warn),
        f"prompts of {source} again",
    )
    return of_cache(cache, data)


def _compare(
    source: str,
    option: str,
    data: DataConfig,
    cache: pathlib.Path,
    warn: Callable[[str], None],
) -> None:
    """Refuses a function that returns other prompts than those of the cache."""
    then = cache.read_text(encoding="utf-8", errors="replace")
    function = import_object(source, option)
    try:
        now = made_lines(source, option, function, data.timeout)
    except BadInput as error:
        if error.__cause__ is None:
            raise  # it did return a list
        # It raised; its list lies behind a network, say. The run has what it needs.
        warn(
            f"{option} = {source} cannot be called again ({error}); the run goes on "
            f"with the prompts that it began with, {cache}"
        )
        return
    if now != then:
        raise BadInput(
            f"{option} = {source} returns another list than the run began with, "
            f"{cache}: {_first_difference(then, now)}. Its iterations would mix two "
            "sets of prompts. Make it return that list at every call (a seed of its "
            "own for what it draws), or choose another --workdir"
        )


def is_function(source: str) -> bool:
    """Whether a source of prompts is a "module:function"."""
    # A colon behind a slash is a hub dataset's configuration.
    named = ":" in source and "/" not in source.partition(":")[0]
    return named and not pathlib.Path(source).exists()


def of_cache(cache: pathlib.Path, data: DataConfig) -> tuple[str, DataConfig]:
    """Returns the file of a function's prompts, and how it is read."""
    return str(cache), replace(data, prompt_field="prompt", split="train")


def made_lines(
    source: str,
    option: str,
    function: Callable[[], Iterable[Any]],
    timeout: float | None,
) -> str:
    """Returns the JSON lines of what a function of prompts returns.

    Args:
      timeout: seconds that it may take; None: for ever.

    Raises:
      BadInput: it raised, took too long, or returned no prompts.
    """

    def make() -> list[str]:
        # One by one: a generator may yield the same object, changed, every time.
        return [
            json.dumps({"prompt": _plain(item, f"{source}: prompt {number}")}) + "\n"
            for number, item in enumerate(function())
        ]

    try:
        # A command reads with fields of a config only where it was given one.
        sets = "data.timeout" if option.startswith(("data.", "evaluation.")) else None
        with left_alone(source):
            lines = call_user(source, make, timeout=timeout, option=sets or "--timeout")
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"{option} = {source} raised {type(error).__name__}: {error}; wanted a "
            "function without arguments that returns a list of prompts"
            f"{user_lines(error)}"
        ) from error
    if not lines:
        raise BadInput(f"{source} returned no prompts; wanted at least one")
    return "".join(lines)


def _first_difference(then: str, now: str) -> str:
    before, after = then.splitlines(), now.splitlines()
    if len(before) != len(after):
        return f"{len(after):,} prompts, which were {len(before):,}"
    at = next(i for i, pair in enumerate(zip(before, after)) if pair[0] != pair[1])
    new = json.loads(after[at])["prompt"]
    try:
        old = json.loads(before[at])["prompt"]
    except (ValueError, KeyError, TypeError):
        return f"line {at + 1} of that file is damaged; remove it, and it is made again"
    return f"prompt {at} is {str(new)[:60]!r}, and was {str(old)[:60]!r}"


def _plain(item: Any, name: str) -> Any:
    whole = isinstance(item, str | Mapping) or not isinstance(item, Iterable)
    value = item if whole else list(item)
    _, faults = parse_prompt(value, "prompt")
    if faults:
        raise BadInput(f"{name}: {'; '.join(faults)}")
    return value
