"""Whether models fit the same weights, and so can be merged."""

from dataclasses import fields

from tpmm_jax.errors import BadInput
from tpmm_jax.models import ModelConfig


def architecture_differences(first: ModelConfig, other: ModelConfig) -> list[str]:
    """Returns "field other's and first's" of each field that the weights' use needs."""
    special = ("eos_ids", "bos_id", "pad_id")
    return [
        f"{f.name} {getattr(other, f.name)} and {getattr(first, f.name)}"
        for f in fields(first)
        if f.name not in special and getattr(first, f.name) != getattr(other, f.name)
    ]


def check_same_architecture(
    first: ModelConfig, other: ModelConfig, name: str, first_name: str = "model 0"
) -> None:
    """Raises BadInput, naming the fields, unless both fit the same weights."""
    if first.output != other.output:
        kinds = {"tokens": "a causal language model", "reward": "a reward model"}
        raise BadInput(
            f"{name} is {kinds[other.output]} and {first_name} {kinds[first.output]}; "
            "only models of one kind can be merged"
        )
    if differing := architecture_differences(first, other):
        raise BadInput(
            f"{name} has a different architecture from {first_name} "
            f"({'; '.join(differing)}); only checkpoints of one architecture can be "
            "merged"
        )
