"""Which meshes suit a model and a number of devices, by arithmetic alone.

A step's time is taken to be the longer of its products, at the chip's peak, and of what
it sends. Per device, with W weights, T tokens of its own and n-fold rings:

    fsdp    gathers the weights twice in the compute dtype and scatters float32
            gradients, for each micro-batch
    data    sums float32 gradients of what fsdp leaves it, once
    tensor  sums activations four times a layer, twice more where layers are remade
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from tpmm_jax.chips import GIB, Chip
from tpmm_jax.config import Config, RewardConfig, make_decoder
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import AXES, DATA, EXPERT, FSDP, TENSOR, bytes_on_device
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.models.advice import mesh_advice
from tpmm_jax.models.experts import check_mesh
from tpmm_jax.sampling.layout import SHARE
from tpmm_jax.steps import abstract_state


@dataclass(frozen=True)
class MeshOption:
    """A mesh, and what speaks against it.

    Attributes:
      held: bytes on a device: weights, moments and gradients, float32.
      fits: whether they leave room for activations; None: the memory is not known.
      seconds: of a train step, by arithmetic; None: the chip is not known.
      faults: sentences; empty: a good mesh.
    """

    shape: Mapping[str, int]
    held: int
    fits: bool | None
    seconds: float | None
    faults: Sequence[str]

    @property
    def legal(self) -> bool:
        """Whether a run could use it at all."""
        return self.held > 0

    @property
    def settings(self) -> list[str]:
        """The sizes as --set has them."""
        return [f"mesh.{name}={size}" for name, size in self.shape.items()]

    @property
    def text(self) -> str:
        """The sizes in words."""
        return mesh_text(self.shape)


def mesh_text(shape: Mapping[str, int]) -> str:
    """Returns a mesh in words, such as "fsdp 16" or "data 2 x tensor 4"."""
    parts = [f"{name} {size}" for name, size in shape.items() if size > 1]
    return " x ".join(parts) or "one device"


def stand_in_mesh(shape: Mapping[str, int]) -> Mesh:
    """Returns a mesh of one device many times over: shapes and shardings alone."""
    sizes = [shape[name] for name in AXES]
    kinds = (AxisType.Auto,) * len(AXES)
    return Mesh(np.full(sizes, jax.devices()[0]), AXES, axis_types=kinds)


def mesh_options(
    config: Config | RewardConfig,
    model: ModelConfig,
    count: int,
    length: int,
    *,
    chip: Chip | None = None,
    memory: int | None = None,
) -> list[MeshOption]:
    """Returns all meshes of so many devices, best first, those with faults last.

    Args:
      length: tokens that pairs are padded to.
      memory: of a device, bytes; None: not known.
    """
    options = [
        _option(shape, config, model, length, chip, memory)
        for shape in _shapes(count, model)
    ]

    def rank(one: MeshOption) -> tuple:
        # Where the chip is not known, the fewest ways of splitting come first.
        ways = sum(size > 1 for size in one.shape.values())
        time = one.seconds if one.seconds is not None else 0.0
        order = bool(one.faults), one.fits is False, time, one.shape[TENSOR]
        return not one.legal, *order, one.held, ways

    return sorted(options, key=rank)


def _shapes(count: int, model: ModelConfig) -> Iterator[dict[str, int]]:
    parts = [n for n in range(1, count + 1) if count % n == 0]
    for expert in parts if model.experts is not None else [1]:
        for tensor in parts:
            for fsdp in parts:
                rest, left = divmod(count, expert * tensor * fsdp)
                if left == 0 and rest >= 1:
                    yield {DATA: rest, FSDP: fsdp, TENSOR: tensor, EXPERT: expert}


def _option(
    shape: Mapping[str, int],
    config: Config | RewardConfig,
    model: ModelConfig,
    length: int,
    chip: Chip | None,
    memory: int | None,
) -> MeshOption:
    mesh = stand_in_mesh(shape)
    try:
        check_mesh(mesh, model)
    except BadInput as error:
        return MeshOption(shape, 0, None, None, [str(error)])
    decoder = make_decoder(config.model, model, mesh)
    trained = decoder.abstract_trained()
    held = bytes_on_device((abstract_state(trained, config.train), trained))
    if decoder.lora is not None:
        held += bytes_on_device(decoder.abstract_params("float32"))
    faults = mesh_advice(mesh, model, config.batch_sizes)
    fits = None if memory is None else held <= SHARE * memory
    if fits is False:
        assert memory is not None
        faults.append(
            f"weights, gradients and moments take {held / GIB:.1f} GiB of a device's "
            f"{memory / GIB:.1f}, which leaves no room for activations"
        )
    seconds = None
    if chip is not None:
        seconds = _step_seconds(shape, config, decoder, length, chip)
    return MeshOption(shape, held, fits, seconds, faults)


def _step_seconds(
    shape: Mapping[str, int],
    config: Config | RewardConfig,
    decoder: Decoder,
    length: int,
    chip: Chip,
) -> float:
    """Returns the seconds of a train step; see the module's description."""
    c, remat = decoder.config, decoder.remat
    data, fsdp, tensor = shape[DATA], shape[FSDP], shape[TENSOR]
    tokens = 2 * config.train.filled(decoder.mesh) * length
    width = jnp.dtype(decoder.compute_dtype).itemsize
    whole = replace(decoder, mesh=None)
    weights = sum(x.size for x in jax.tree.leaves(whole.abstract_params()))
    trained = sum(x.size for x in jax.tree.leaves(whole.abstract_trained()))
    routed = _routed(c)
    active = weights - routed
    if c.experts is not None:
        active += routed * c.experts.top_k // c.experts.count
    # Forward, backward, and the gradient of what is trained; remat's forward again.
    passes = 2 + 2 + (2 if decoder.lora is None else 0) + (2 if remat else 0)
    peak = chip.peak(decoder.compute_dtype)
    computing = passes * active * tokens / (peak * math.prod(shape.values()))
    here, rounds = tokens / (data * fsdp), config.train.accumulation
    # Experts lie on an axis of their own too.
    weights -= routed - routed // shape[EXPERT]
    if decoder.lora is None:
        trained = weights
    sent = (fsdp - 1) / fsdp * (2 * width * weights + 4 * trained) * rounds / tensor
    sent += 2 * (data - 1) / data * 4 * trained / (fsdp * tensor)
    sums = 2 + 2 + (2 if remat else 0)
    sent += 2 * (tensor - 1) / tensor * sums * c.num_layers * here * c.width * width
    return max(computing, sent / chip.link)


def _routed(config: ModelConfig) -> int:
    """Returns the weights of all routed experts."""
    if config.experts is None:
        return 0
    layers = len(config.experts.places(config.num_layers))
    return layers * config.experts.count * 3 * config.width * config.mlp_width
