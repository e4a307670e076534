"""What a user may want to know of a mesh, a model and the batches on it."""

from collections.abc import Mapping

from jax.sharding import Mesh

from tpmm_jax.mesh import DATA, FSDP, TENSOR, bytes_on_device, fill
from tpmm_jax.models import Decoder, ModelConfig


def mesh_advice(mesh: Mesh, model: ModelConfig, sizes: Mapping[str, int]) -> list[str]:
    """Returns what speaks against a mesh, in sentences.

    Args:
      sizes: field of the config -> the rows of a batch that it makes.
    """
    tensor, heads = mesh.shape[TENSOR], model.num_kv_heads
    advice = []
    if heads % tensor:
        plural = "" if heads == 1 else "s"
        advice.append(
            f"mesh.tensor={tensor} does not divide {heads} key/value head{plural}: "
            "every device holds and computes all of them; mesh.fsdp splits this "
            "model's weights further"
        )
    elif model.num_heads % tensor:
        advice.append(
            f"mesh.tensor={tensor} does not divide {model.num_heads} attention heads: "
            "every device computes all of them"
        )
    advice += filter(None, [_weights_advice(mesh, model)])
    parts = mesh.shape[DATA] * mesh.shape[FSDP]
    for name, size in sizes.items():
        filled = fill(mesh, size, sides=2 if name.startswith("train.") else 1)
        if filled > size:
            advice.append(
                f"{name} = {size} is filled up to {filled}, so that data x fsdp = "
                f"{parts} devices share it: {1 - size / filled:.0%} of that work is "
                "for nothing; choose a multiple"
            )
    return advice


def _weights_advice(mesh: Mesh, model: ModelConfig) -> str:
    """Returns what fsdp leaves whole, or nothing."""
    fsdp = mesh.shape[FSDP]
    if model.width % fsdp == 0:
        return ""
    whole = bytes_on_device(Decoder(model).abstract_params())
    held = bytes_on_device(Decoder(model, mesh=mesh).abstract_params())
    return (
        f"mesh.fsdp={fsdp} does not divide the model's width of {model.width}: every "
        f"device holds {held / whole:.0%} of the weights, not "
        f"{1 / fsdp / mesh.shape[TENSOR]:.1%}"
    )
