"""How weights lie while answers are drawn, so that no token moves any of them.

Under fsdp each device holds a part of every matrix: training gathers them once a step,
decoding would gather them once a token. Before answers are drawn the policy is cast and
laid out anew, on the same devices as another mesh.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from tpmm_jax.axes import Params
from tpmm_jax.hosts import once
from tpmm_jax.mesh import AXES, DATA, FSDP, TENSOR, bytes_on_device
from tpmm_jax.models import Decoder

# Of a device's memory, what weights may take: the rest is of caches and logits.
SHARE = 0.7


def for_sampling(decoder: Decoder, params: Params) -> tuple[Decoder, Params]:
    """Returns the decoder that draws, and its weights, cast and laid out for it.

    Replicated where they fit, and the draws are then those of a mesh without fsdp;
    else some devices of fsdp split each layer, as mesh.tensor does.
    """
    mesh = decoder.mesh
    if mesh is None or mesh.shape[FSDP] == 1:
        return decoder, decoder.for_decoding(params)
    limit = once(_memory, "memory")
    laid = replace(decoder, mesh=sampling_mesh(decoder, limit))
    return laid, lay_out(decoder, laid)(params)


def sampling_mesh(decoder: Decoder, limit: int | None) -> Mesh:
    """Returns the mesh, over the same devices, on which answers are drawn.

    Of fsdp's devices as few split a layer as its weights need, and the others share the
    answers: keys and values are split by heads, of which there may be few.

    Args:
      limit: bytes of a device's memory; None: not known, and taken to be enough.
    """
    assert decoder.mesh is not None
    fsdp = decoder.mesh.shape[FSDP]
    for ways in (n for n in range(1, fsdp + 1) if fsdp % n == 0):
        mesh = _without_fsdp(decoder.mesh, ways)
        laid = replace(decoder, mesh=mesh)
        need = bytes_of_weights(laid, sampling=True) + bytes_of_weights(decoder)
        if limit is None or need <= SHARE * limit:
            break
    return mesh


def _without_fsdp(mesh: Mesh, ways: int) -> Mesh:
    """Returns the mesh whose fsdp axis is part of tensor, so many ways, and of data."""
    shape = dict(mesh.shape)
    shape[DATA] *= shape[FSDP] // ways
    shape[TENSOR] *= ways
    shape[FSDP] = 1
    # fsdp lies between data and tensor, so that the order of devices stays.
    devices = mesh.devices.reshape([shape[name] for name in AXES])
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def drawing_params(decoder: Decoder, dtype: str = "float32") -> Params:
    """Returns shapes and shardings of the weights that draw, on the decoder's mesh.

    Args:
      dtype: of the weights before they are cast.
    """
    placed = decoder.abstract_params(dtype)
    cast = jax.eval_shape(decoder.for_decoding, placed)
    return jax.tree.map(
        lambda x, like: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding),
        cast,
        placed,
    )


def bytes_of_weights(decoder: Decoder, *, sampling: bool = False) -> int:
    """Returns the bytes of a policy's weights on one device.

    Args:
      sampling: as answers are drawn; else as they are trained, float32.
    """
    if sampling:
        return bytes_on_device(drawing_params(decoder))
    return bytes_on_device(decoder.abstract_params("float32"))


def _memory() -> int | None:
    """Returns the bytes of a device's memory; None where it does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


@functools.cache
def lay_out(decoder: Decoder, laid: Decoder) -> Any:
    """Returns the jitted function from weights as trained to those that draw."""
    where = jax.tree.map(lambda x: x.sharding, laid.abstract_params("float32"))
    return jax.jit(decoder.for_decoding, out_shardings=where)
