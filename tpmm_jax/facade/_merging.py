"""Weighted sums of models, and what stands against one."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.facade._prompts import codec_of
from tpmm_jax.merging import signal_to_rounding, weighted_sum
from tpmm_jax.models import Decoder
from tpmm_jax.weights.architecture import check_same_architecture
from tpmm_jax.weights.loading import resolve_any
from tpmm_jax.weights.source import Model, Source


def merge(
    models: Sequence[Model | str | os.PathLike], weights: Sequence[float]
) -> Model:
    """Returns the model sum_k w_k theta_k, computed in float32.

    Its origin holds "signal_to_rounding", the size of the merge's change to model 0
    over the float32 rounding error, and "signal_to_rounding_bfloat16", the same of a
    cast to bfloat16, which ``save`` warns of: see ``merging.signal_to_rounding``.
    Tokenizer, chat template and generation settings are those of model 0.

    Warns (UserWarning) of a model with another vocabulary, chat template or end of an
    answer than model 0's, and of weights that do not add up to 1.

    >>> merged = tpmm.merge(["my-model", "my-model"], [0.25, 0.75])
    >>> merged.origin["weights"]
    [0.25, 0.75]

    Args:
      models: policies or reward models, or what ``load`` and ``load_reward`` take;
        paths are loaded one at a time. The mean of reward models is WARM (2401.12187).
      weights: one real number per model; they need not sum to 1.

    Raises:
      BadInput: none, not as many weights, or models of different architecture.
    """
    if not models or len(models) != len(weights):
        both = f"{len(models)} models and {len(weights)} weights"
        raise BadInput(f"{both}; wanted one each")
    if not np.isfinite(np.asarray(weights, float)).all():
        raise BadInput(f"weights are {list(weights)}; wanted finite numbers")
    first = as_model(models[0])
    remarks = list(filter(None, [sum_remark(weights)]))

    def all_params() -> Iterator[Params]:
        for k, model in enumerate(models):
            params = first if k == 0 else as_model(model)
            check_same_architecture(first.config, params.config, f"model {k}")
            remarks.extend(merge_remarks(first, params, f"model {k}"))
            yield params.params

    merged, ratio = weighted_sum(all_params(), weights)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    origin = {
        "source": "merge",
        "weights": [float(w) for w in weights],
        "signal_to_rounding": ratio,
        "signal_to_rounding_bfloat16": signal_to_rounding(
            merged, first.params, "bfloat16"
        ),
    }
    decoder = replace(first.decoder, compute_dtype="float32")
    return Model(decoder, merged, first.tokenizer, origin, first.generation)


def sum_remark(weights: Sequence[float]) -> str:
    """Returns what to say of weights that do not add up to 1; "" if they do."""
    total = sum(map(float, weights))
    if abs(total - 1) <= 1e-6:
        return ""
    return f"the weights add up to {total:g}, not to 1"


def merge_remarks(
    first: Model | Source, other: Model | Source, name: str, first_name: str = "model 0"
) -> list[str]:
    """Returns what to say of a model whose texts are not written as the first's."""
    remarks = []
    both = (first.tokenizer, other.tokenizer)
    if None not in both:
        if both[0].get_vocab() != both[1].get_vocab():
            remarks.append(
                f"{name} has a different vocabulary from {first_name}: the merge mixes "
                "embeddings of different tokens, and gets the tokenizer of the first"
            )
        if both[0].chat_template != both[1].chat_template:
            remarks.append(
                f"{name} has a different chat template from {first_name}: the merge "
                "gets that of the first, which the other was not trained with"
            )
    if first.config.output == "reward":
        return remarks
    ends = [set(codec_of(model).eos_ids) for model in (first, other)]
    if ends[0] != ends[1]:
        remarks.append(
            f"{name} ends its answers with other token ids ({sorted(ends[1])}) than "
            f"{first_name} ({sorted(ends[0])}): the merge gets those of the first"
        )
    return remarks


def as_model(model: Model | str | os.PathLike) -> Model:
    """Returns a model as it is, or loads a policy or a reward model, in float32."""
    if isinstance(model, Model):
        return model
    (found,) = resolve_any([os.fspath(model)])
    decoder = Decoder(found.config)
    return found.model(decoder, found.read(decoder, "float32"))
