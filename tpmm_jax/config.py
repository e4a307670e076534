"""A run's configuration: composed of the packages' own, read, typed, validated."""

import dataclasses
import difflib
import importlib.util
import json
import math
import os
import pathlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import LossConfig
from tpmm_jax.merging import RULES, ReferenceConfig
from tpmm_jax.mesh import MeshConfig
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.steps import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where theta_0 comes from, and its numerics.

    Attributes:
      source: a Hugging Face directory, .gguf file, hub id, "workdir/trajectory@3",
        or "module:function", called with a directory to write a model into.
      revision: of a hub id.
      compute_dtype: of activations and matrix products. Parameters, optimizer state,
        log-probabilities and merges are float32 always.
      remat: recompute each layer in the backward pass: less memory, a third slower.
      logits_chunk_mib: size of one chunk of float32 logits, per device.
    """

    source: str
    revision: str | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = True
    logits_chunk_mib: int = 32


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(SamplingConfig):
    """Sampling from the policy in each iteration.

    Attributes:
      prompts_per_iteration: each iteration's own prompts, held-out ones included.
      samples_per_prompt: R; 4 to 8 is usual.
      batch_size: prompts that are sampled at once.
    """

    prompts_per_iteration: int = 256
    samples_per_prompt: int = 4
    batch_size: int = 32

    def sampling(self) -> SamplingConfig:
        """Returns the part that a sampler reads."""
        fields = dataclasses.fields(SamplingConfig)
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in fields})


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Sampling theta_t on the same prompts after every iteration.

    Attributes:
      num_prompts: of data.eval_prompts, or set aside from data.prompts; 2 or more.
      samples_per_prompt: drawn with rollout's temperature, top_p and top_k.
    """

    num_prompts: int = 64
    samples_per_prompt: int = 1


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How the trajectory is kept.

    Attributes:
      storage: every step in float32, or theta_0 and bfloat16 deltas to it (half the
        disk; the next iteration starts from what was stored).
    """

    storage: Literal["float32", "bfloat16_delta"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of iterative preference optimisation.

    Attributes:
      iterations: T.
      seed: of everything random.
    """

    iterations: int
    seed: int = 0
    model: ModelSource
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    pairing: PairingConfig = field(default_factory=PairingConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    store: StoreConfig = field(default_factory=StoreConfig)

    @property
    def offline(self) -> bool:
        """Whether pairs are given instead of sampled."""
        return self.data.pairs is not None

    def validate(self) -> None:
        """Checks types, ranges and combinations.

        Raises:
          BadInput: names the field, what was wanted and what to do.
        """
        check_types(self)
        self.data.validate()
        self.rollout.validate("rollout")
        self.pairing.validate()
        self.reference.validate(tuple(RULES))
        self.loss.validate()
        self.train.validate()
        for name in (
            "iterations", "model.logits_chunk_mib", "rollout.prompts_per_iteration",
            "rollout.batch_size", "evaluation.samples_per_prompt",
        ):  # fmt: skip
            if get_field(self, name) < 1:
                raise BadInput(f"{name} is {get_field(self, name)}; use at least 1")
        if self.evaluation.num_prompts < 2:
            raise BadInput(
                f"evaluation.num_prompts is {self.evaluation.num_prompts}; use at "
                "least 2: the interval of a mean needs its spread over prompts"
            )
        if self.seed < 0:
            raise BadInput(f"seed is {self.seed}; use 0 or more")
        if self.reference.uses_holdout and self.pairing.holdout_fraction == 0:
            raise BadInput(
                f"reference.rule={self.reference.rule} needs held-out pairs; set "
                "pairing.holdout_fraction above 0 (0.25 is usual)"
            )
        if self.offline:
            self._validate_offline()
        elif self.scorer.name is None:
            raise BadInput(
                'data.prompts needs a scorer: set scorer.name to "module:function"'
            )
        elif self.rollout.samples_per_prompt < 2 or self.rollout.temperature == 0:
            raise BadInput(
                "pairs need different responses: rollout.samples_per_prompt must be at "
                f"least 2 (is {self.rollout.samples_per_prompt}) and "
                f"rollout.temperature above 0 (is {self.rollout.temperature})"
            )

    def _validate_offline(self) -> None:
        if self.scorer.name is not None and self.data.eval_prompts is None:
            raise BadInput(
                "with data.pairs a scorer is used for evaluation only: set "
                "data.eval_prompts too, or leave scorer.name unset"
            )
        if self.data.eval_prompts is not None and self.scorer.name is None:
            raise BadInput("data.eval_prompts needs a scorer: set scorer.name")


# What may differ when a run is continued: none of it changes finished work.
MAY_CHANGE = (
    "iterations",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "model.logits_chunk_mib",
    "model.remat",
    "rollout.batch_size",
    "train.accumulation",
    "train.checkpoint_every",
)


def get_field(config: Any, name: str) -> Any:
    """Returns the value of a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: value}, in declaration order."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = dict(value) if isinstance(value, Mapping) else value
    return flat


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the nested JSON form."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Config:
    """Runs a config file, applies overrides, validates; returns the Config.

    The file is code and is run as such: use only files you trust. Its folder joins
    the import path, so that a scorer may live beside it.

    Args:
      overrides: "dotted.name=value", as after --set.

    Raises:
      BadInput: whatever is wrong, with what was wanted.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else pathlib.Path(".")
        near = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()])
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise BadInput(f"--config {path}: no such file{hint}")
    for place in (os.getcwd(), str(path.parent.resolve())):
        if place not in sys.path:
            sys.path.append(place)
    # Under its own name, so that a scorer "name:function" is this very module.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"--config {path}: wanted a .py file, Python with get_config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise BadInput(f"{path} defines no get_config()")
        config = get_config()
    except BadInput:
        raise
    except TypeError as error:
        raise BadInput(f"{path}: {_explain(str(error))}") from error
    except Exception as error:
        raise BadInput(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise BadInput(
            f"{path}: get_config() returned a {type(config).__name__}; wanted a "
            "tpmm_jax.config.Config"
        )
    for override in overrides:
        config = set_field(config, override)
    config.validate()
    return config


def _explain(message: str) -> str:
    """Adds the nearest field to Python's message on an unknown keyword."""
    marker = "unexpected keyword argument "
    if marker not in message:
        return message
    wrong = message.split(marker)[1].split("'")[1]
    owner = message.split(".")[0]
    owners = {c.__name__: c for c in _dataclasses(Config)}
    names = (
        [f.name for f in dataclasses.fields(owners[owner])] if owner in owners else []
    )
    return f"{owner} has no field {wrong!r}" + _nearest(wrong, names)


def _dataclasses(cls: Any) -> list[Any]:
    hints = typing.get_type_hints(cls)
    found = [cls]
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            found += _dataclasses(hints[f.name])
    return found


def _nearest(wrong: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; its fields are {', '.join(names)}" if names else ""


def set_field(config: Any, override: str) -> Any:
    """Returns ``config`` with one "dotted.name=value" applied, the value typed.

    Raises:
      BadInput: no "=", an unknown name (the nearest are listed), or a value that
        the field's type does not admit.
    """
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals:
        raise BadInput(f"--set {override}: wanted name=value, such as loss.beta=0.2")
    return _set(config, name.split("."), text.strip(), name)


def _set(config: Any, parts: list[str], text: str, name: str) -> Any:
    hints = typing.get_type_hints(type(config))
    names = [f.name for f in dataclasses.fields(config)]
    if parts[0] not in names:
        known = list(flatten(config))
        near = difflib.get_close_matches(".".join(parts), known, n=3, cutoff=0.4)
        deeper = [n for n in known if n.split(".")[-1] == parts[-1]]
        at = name[: len(name) - len(".".join(parts))]
        hint = [at + n for n in dict.fromkeys([*deeper, *near])][:3]
        raise BadInput(
            f"--set {name}: there is no such field"
            + (
                f"; did you mean {', '.join(hint)}?"
                if hint
                else _nearest(parts[0], names)
            )
        )
    value = getattr(config, parts[0])
    if len(parts) > 1:
        if not dataclasses.is_dataclass(value):
            if isinstance(value, Mapping) and len(parts) == 2:
                changed = {**value, parts[1]: _any_value(text)}
                return dataclasses.replace(config, **{parts[0]: changed})
            raise BadInput(f"--set {name}: {parts[0]} has no fields of its own")
        new = _set(value, parts[1:], text, name)
    elif dataclasses.is_dataclass(value):
        inner = [f"{name}.{f.name}" for f in dataclasses.fields(value)]
        raise BadInput(f"--set {name}: name one of its fields: {', '.join(inner)}")
    else:
        new = parse(text, hints[parts[0]], name)
    return dataclasses.replace(config, **{parts[0]: new})


def _any_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse(text: str, hint: Any, name: str) -> Any:
    """Returns ``text`` as a value of type ``hint``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wanted = describe(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.lower() in ("none", "null"):
            return None
        return parse(text, next(a for a in args if a is not type(None)), name)
    if origin is Literal:
        if text in args:
            return text
        raise BadInput(f"--set {name}={text}: wanted {wanted}{_nearest(text, args)}")
    if hint is str:
        return text
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if hint in (int, float):
            return hint(text.replace("_", ""))
        value = json.loads(text)
    except (ValueError, KeyError):
        raise BadInput(f"--set {name}={text}: wanted {wanted}") from None
    if not fits(value, hint):
        raise BadInput(f"--set {name}={text}: wanted {wanted}")
    return value


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "none",
}


def describe(hint: Any) -> str:
    """Returns a type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is not None:
        return "a JSON object"
    return _WORDS.get(hint, str(hint))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; an int is a float too, a bool is not."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def check_types(config: Any, prefix: str = "") -> None:
    """Raises BadInput for the first field of another type, or that holds inf or nan."""
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if not fits(value, hints[f.name]):
            raise BadInput(
                f"{name} is {value!r} ({type(value).__name__}); wanted "
                f"{describe(hints[f.name])}"
            )
        _check_finite(value, name)
        if dataclasses.is_dataclass(value):
            check_types(value, f"{name}.")


def _check_finite(value: Any, name: str) -> None:
    """Raises BadInput for inf or nan, inside an object or a list too."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{name} is {value}; wanted a finite number")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_finite(inner, f"{name}[{i}]")
