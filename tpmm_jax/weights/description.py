"""What a model's directory holds beside the weights: config and end ids."""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tpmm_jax.data.codec import find_eos_ids
from tpmm_jax.errors import BadInput, nearest_path
from tpmm_jax.models import ModelConfig
from tpmm_jax.weights.hf_config import as_ids, one_or_all, parse_config, write_config
from tpmm_jax.weights.tokenizer import write_tokenizer

# Of the brackets of a JSON file; what is read here needs five.
DEEPEST = 50
GENERATION = "generation_config.json"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns a file's JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}; wanted an object")
    if _depth(content) > DEEPEST:
        raise BadInput(f"{path} has brackets nested more than {DEEPEST} deep")
    return content


def _depth(content: Any) -> int:
    """Returns how deep lists and objects are nested, as far as DEEPEST + 1."""
    level, depth = [content], 0
    while level and depth <= DEEPEST:
        inner = [x.values() if isinstance(x, dict) else x for x in level]
        level = [x for some in inner for x in some if isinstance(x, dict | list)]
        depth += 1
    return depth


def read_config(directory: pathlib.Path) -> ModelConfig:
    """Returns the ModelConfig of a directory, its generation config's EOS ids too."""
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory{nearest_path(directory)}")
    path = directory / "config.json"
    if not path.exists():
        files = [p for p in directory.iterdir() if p.suffix.lower() == ".gguf"]
        hint = "is it a model's directory?"
        if len(files) == 1:
            hint = f"did you mean {files[0]}?"
        raise BadInput(f"{directory} holds no config.json; {hint}")
    config = parse_config(read_json(path), str(path))
    more = as_ids(read_generation(directory).get("eos_token_id"), GENERATION)
    return replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *more))))


def read_generation(directory: pathlib.Path) -> dict[str, Any]:
    """Returns what generation_config.json holds; {} where there is none.

    Raises:
      BadInput: not a JSON object, or an eos_token_id that is none.
    """
    path = directory / GENERATION
    if not path.exists():
        return {}
    content = read_json(path)
    as_ids(content.get("eos_token_id"), str(path))
    return content


def write_description(
    config: ModelConfig,
    tokenizer: Any,
    dtype: str,
    directory: pathlib.Path,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a model's directory holds beside the weights.

    Args:
      generation: what the source's generation_config.json held.
    """
    hf = write_config(config, dtype)
    (directory / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    settings = dict(generation or {})
    # It has transformers make the settings anew.
    settings.pop("_from_model_config", None)
    own = as_ids(settings.get("eos_token_id"), GENERATION)
    # Where the tokenizer ends what the config does not: generation ends there as well.
    ends = dict.fromkeys((*own, *find_eos_ids(config, tokenizer)))
    settings["eos_token_id"] = one_or_all(list(ends))
    for key in ("bos_token_id", "pad_token_id"):
        if settings.get(key) is None:
            settings[key] = hf[key]
    settings = {key: x for key, x in settings.items() if x is not None}
    text = json.dumps(settings, indent=2) + "\n"
    (directory / GENERATION).write_text(text)
    if tokenizer is not None:
        write_tokenizer(tokenizer, directory)
