"""Drawing completions from a policy."""

from tpmm_jax.sampling.decode import generate_batches, sample
from tpmm_jax.sampling.rules import SamplingConfig

__all__ = ["SamplingConfig", "generate_batches", "sample"]
