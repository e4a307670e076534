"""The functions of a user that a run calls by name, and the files that hold them."""

import hashlib
import inspect
import pathlib
import sys
from collections.abc import Mapping, Sequence

from tpmm_jax.config import Config
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompt_functions import is_function
from tpmm_jax.loop.prompts import prompt_sources
from tpmm_jax.rewards import (
    COLUMN,
    JUDGES,
    MARGINS,
    SCORER,
    SCORERS,
    Raters,
    import_object,
    member_fields,
)

NO_RATERS = Raters()


def rater_fields(config: Config) -> dict[str, str]:
    """Returns {field: the name} of scorers, judges and the margins' source.

    Several scorers that count as one have fields of their own, "scorer.name[0]" ...
    """
    scorer = config.scorer
    names = (scorer.title,) if scorer.ensemble == "weights" else scorer.names
    found = member_fields(SCORER, names)
    for label, name in sorted(config.evaluation.scorers.items()):
        names = (name,) if isinstance(name, str) else tuple(name)
        found |= member_fields(SCORERS + label, names)
    if (source := config.madpo.margins) not in (None, COLUMN):
        found[MARGINS] = source
    return found | {JUDGES + k: v for k, v in sorted(config.evaluation.judges.items())}


def user_functions(config: Config) -> dict[str, str]:
    """Returns {field: "module:function"} of scorers, judges and prompts."""
    found = rater_fields(config)
    for option, source, _ in prompt_sources(config):
        if is_function(source):
            found[option] = source
    return found


def source_digests(config: Config, raters: Raters = NO_RATERS) -> dict[str, str]:
    """Returns {field: SHA-256 of the file that holds its function}.

    A function that no file holds is left out. Of a model of ours it is the SHA-256 of
    its weights and its tokenizer.
    """
    found = raters.digests()
    for field, name in user_functions(config).items():
        if field in found:
            continue
        function = inspect.unwrap(import_object(name, field))
        try:
            path = inspect.getfile(function)
        except TypeError:  # an object, or of a compiled module
            path = getattr(sys.modules[name.partition(":")[0]], "__file__", None) or ""
        if pathlib.Path(path).is_file():
            found[field] = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    return found


def edited(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the fields whose function's file is another than at the last start."""
    return [field for field in now if before.get(field, now[field]) != now[field]]


def warn_edited(config: Config, fields: Sequence[str], console: RunConsole) -> None:
    """Says that source files changed, if they did."""
    names = user_functions(config)
    if fields:
        console.warn(
            "the source file of "
            + ", ".join(f"{field} = {names[field]}" for field in fields)
            + " changed since the last start. Scorers and judges are compared on one "
            "stored batch; if an edit changes what they say of other answers, use a "
            "new --workdir, or --rescore"
        )
