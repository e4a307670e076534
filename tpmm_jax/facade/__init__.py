"""The functions of ``import tpmm_jax as tpmm``, and what commands share with them.

No function here has the name of a module of tpmm_jax, which would hide it.
"""

from tpmm_jax.facade._experts import upcycle
from tpmm_jax.facade._generation import (
    BATCH_SIZE,
    completion_batches,
    generate,
    stream,
    token_stream,
)
from tpmm_jax.facade._log_probs import log_probs, logits
from tpmm_jax.facade._merge_experts import (
    kept_start_text,
    merge_experts,
    merge_pairs,
)
from tpmm_jax.facade._merging import (
    merge,
    merge_remarks,
    sum_remark,
)
from tpmm_jax.facade._prompts import codec_of, encode
from tpmm_jax.facade._rewards import score, score_tokens

__all__ = [
    "BATCH_SIZE",
    "codec_of",
    "completion_batches",
    "encode",
    "generate",
    "kept_start_text",
    "log_probs",
    "logits",
    "merge",
    "merge_experts",
    "merge_pairs",
    "merge_remarks",
    "score",
    "score_tokens",
    "stream",
    "sum_remark",
    "token_stream",
    "upcycle",
]
