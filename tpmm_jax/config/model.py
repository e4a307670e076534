"""The model that a run trains: where it comes from, and how it computes."""

from dataclasses import dataclass, field
from typing import Literal

from jax.sharding import Mesh

from tpmm_jax.models import NO_NOISE, Decoder, LoraConfig, ModelConfig, NoiseConfig


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where theta_0 comes from, and its numerics.

    Attributes:
      source: a Hugging Face directory, .gguf file, hub id, "workdir/trajectory@3",
        a PEFT directory, or "module:function", called with a directory to write a
        model into and the run's console.
      base: the model under a PEFT adapter, if not the one that it names.
      revision: of a hub id.
      compute_dtype: of activations and matrix products. Parameters, optimizer state,
        log-probabilities and merges are float32 always.
      remat: recompute each layer in the backward pass: less memory, up to a third
        slower.
      logits_chunk_mib: size of one chunk of float32 logits, per device.
      attention: of the model that is trained: "auto", by cuDNN's kernels where there
        are some (docs/sharding.md), or "xla", by XLA's own operations.
      lora: trains low-rank adapters over theta_0; off with its rank at 0.
    """

    source: str
    base: str | None = None
    revision: str | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = True
    logits_chunk_mib: int = 32
    attention: Literal["auto", "xla"] = "auto"
    lora: LoraConfig = field(default_factory=LoraConfig)

    @property
    def adapters(self) -> LoraConfig | None:
        """What is trained in place of all weights, or None."""
        return self.lora if self.lora.rank else None


def make_decoder(
    model: ModelSource,
    architecture: ModelConfig,
    mesh: Mesh | None,
    noise: NoiseConfig = NO_NOISE,
) -> Decoder:
    """Returns what a run trains."""
    return Decoder(
        architecture,
        model.compute_dtype,
        model.remat,
        mesh,
        model.adapters,
        model.logits_chunk_mib * 2**20,
        noise,
        model.attention,
    )
