"""A model in memory, and one that was found and not read yet."""

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tpmm_jax.axes import Params
from tpmm_jax.models import Decoder, LoraConfig, ModelConfig
from tpmm_jax.weights.huggingface import TensorSource, read_params


@dataclass(frozen=True, repr=False)
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

    def _facts(self) -> list[tuple[str, str]]:
        config, count = self.config, self.decoder.num_params
        kind = "reward model" if config.output == "reward" else "language model"
        return [
            ("family", f"{config.family}, {kind}"),
            ("parameters", f"{count / 1e6:,.1f} M, {self.decoder.compute_dtype}"),
            ("layers", f"{config.num_layers} of width {config.width}"),
            ("vocabulary", f"{config.vocab_size:,}"),
            ("positions", f"{config.max_positions:,}"),
            ("tokenizer", "none" if self.tokenizer is None else "yes"),
            ("source", str(self.origin.get("source", ""))),
        ]

    def __repr__(self) -> str:
        told = dict(self._facts())
        source = f", {told['source']!r}" if told["source"] else ""
        return f"Model({told['family']}, {told['parameters']}{source})"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{name}</td><td>{html.escape(text)}</td></tr>"
            for name, text in self._facts()
        )
        return f"<table>{''.join(rows)}</table>"


@dataclass(frozen=True)
class Source:
    """A model that was found and understood, its weights not read yet.

    Attributes:
      read: returns the parameters in a dtype, on the decoder's mesh. Only this
        downloads a hub repository's weights.
      adapter: of a PEFT directory: the parts of the policy. None for all others, a
        step of a LoRA run among them, which is read as the merged policy.
      generation: as of ``Model``.
      tensors: opens the files that hold the parameters as they are; None where they are
        kept or made otherwise. Downloads as ``read`` does.
    """

    config: ModelConfig
    tokenizer: Any
    origin: dict[str, Any]
    read: Callable[[Decoder, str], Params]
    adapter: "AdapterSource | None" = None
    generation: dict[str, Any] = field(default_factory=dict)
    tensors: Callable[[], TensorSource] | None = None

    def model(self, decoder: Decoder, params: Params) -> Model:
        """Returns the model with these parameters of it, as they were read or cast."""
        return Model(decoder, params, self.tokenizer, self.origin, self.generation)


def source_of_tensors(
    config: ModelConfig,
    tokenizer: Any,
    origin: dict[str, Any],
    open_tensors: Callable[[], TensorSource],
    generation: dict[str, Any] | None = None,
) -> Source:
    """Returns a model whose parameters are those of files."""

    def read(decoder: Decoder, dtype: str) -> Params:
        return read_params(open_tensors(), decoder, dtype)

    return Source(
        config, tokenizer, origin, read, None, generation or {}, tensors=open_tensors
    )


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
