"""A model in memory, and one that was found and not read yet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tpmm_jax.axes import Params
from tpmm_jax.models import Decoder, LoraConfig, ModelConfig


@dataclass(frozen=True)
class Model:
    """A decoder with its parameters and, where it has one, its tokenizer.

    Attributes:
      decoder: architecture, numerics and mesh.
      params: nested dict of jax.Array.
      tokenizer: a transformers tokenizer, or None.
      origin: where it came from: "source" and, for a hub id, the "commit"; for a PEFT
        adapter whose base was given, that model's origin as "base".
      generation: what its generation_config.json holds, for whoever loads the model
        once it is saved; nothing here samples by it.
    """

    decoder: Decoder
    params: Params
    tokenizer: Any = None
    origin: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config


@dataclass(frozen=True)
class Source:
    """A model that was found and understood, its weights not read yet.

    Attributes:
      read: returns the parameters in a dtype, on the decoder's mesh. Only this
        downloads a hub repository's weights.
      adapter: of a PEFT directory: the parts of the policy. None for all others, a
        step of a LoRA run among them, which is read as the merged policy.
      generation: as of ``Model``.
    """

    config: ModelConfig
    tokenizer: Any
    origin: dict[str, Any]
    read: Callable[[Decoder, str], Params]
    adapter: "AdapterSource | None" = None
    generation: dict[str, Any] = field(default_factory=dict)

    def model(self, decoder: Decoder, params: Params) -> Model:
        """Returns the model with these parameters of it, as they were read or cast."""
        return Model(decoder, params, self.tokenizer, self.origin, self.generation)


@dataclass(frozen=True)
class AdapterSource:
    """Adapters and the model under them, not read yet.

    Attributes:
      base: the model under them.
      read: returns the adapters, float32, on the decoder's mesh.
    """

    lora: LoraConfig
    base: Source
    read: Callable[[Decoder], Params]
