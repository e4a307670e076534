"""Drawing completions from a policy."""

from tpmm_jax.sampling.decode import check_prompt, generate_batches
from tpmm_jax.sampling.rules import SamplingConfig
from tpmm_jax.sampling.stream import stream_tokens, text_pieces

__all__ = [
    "SamplingConfig",
    "check_prompt",
    "generate_batches",
    "stream_tokens",
    "text_pieces",
]
