"""The weighted sum of models in files, a few rows of a tensor at a time.

The same sum as ``merging.weighted_sum``. No more is in memory than a block of one
tensor, of the merge and of each model. Digests and the signal-to-rounding ratios are
added up on the way. Blocks have one of a few sizes, so that a handful of programs
serves all tensors.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.merging.trees import (
    add_leaf,
    one_hot_index,
    scale_leaf,
    signal_and_error,
    subtract_leaf,
)
from tpmm_jax.models import Decoder
from tpmm_jax.models.lora import get
from tpmm_jax.store.fingerprint import digest, layout, odd_hash
from tpmm_jax.store.trees import flatten_params
from tpmm_jax.weights.huggingface import (
    TensorSource,
    check_finite,
    check_floats,
    check_tensors,
    check_tied_head,
)
from tpmm_jax.weights.names import names
from tpmm_jax.weights.writing import write_tensors

# Numbers in a block; a longer row is a block of its own.
SMALL, LARGE = 2**12, 2**18
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class FileMerge:
    """What is known of a merge once it is written.

    Attributes:
      digests: of the models, float32.
      digest: of the merge, before it is cast.
      ratios: signal to rounding by dtype.
    """

    digests: list[str]
    digest: str
    ratios: dict[str, float]


@dataclass(frozen=True)
class _Place:
    """Where a tensor of theirs lies in a parameter of ours.

    Attributes:
      theirs, ours: the names.
      shape: of theirs.
      offset: index in ours of its first number.
      steps: how far apart its rows, and the numbers of one, are in ours.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...]
    offset: int
    steps: tuple[int, int]

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yields the rows where blocks start and stop."""
        rows = max(1, LARGE // math.prod(self.shape[1:]))
        for start in range(0, self.shape[0], rows):
            yield start, min(start + rows, self.shape[0])

    def index(self, start: int, stop: int) -> np.ndarray:
        """Returns the index in ours, mod 2^32, of the numbers of some rows."""
        place = self.offset + start * self.steps[0]
        across, along, first = (np.uint32(x % 2**32) for x in (*self.steps, place))
        rows = np.arange(stop - start, dtype=np.uint32) * across + first
        columns = np.arange(math.prod(self.shape[1:]), dtype=np.uint32) * along
        return rows[:, None] + columns


def _places(decoder: Decoder) -> Iterator[_Place]:
    """Yields every tensor, parameter by parameter."""
    target = decoder.abstract_params("float32")
    for name in names(decoder.config):
        shape = get(target, name.path).shape
        lead = len(name.axes)
        size, theirs = math.prod(shape[lead:]), name.their_shape(shape[lead:])
        # Of a matrix theirs is the transpose.
        steps = (1, theirs[0]) if name.inputs else (math.prod(theirs[1:]), 1)
        for index, tensor in name.tensors(decoder.config):
            place = sum(i * math.prod(shape[k + 1 : lead]) for k, i in enumerate(index))
            yield _Place(tensor, "/".join(name.path), theirs, place * size, steps)


class _Block(NamedTuple):
    """Some rows of a tensor of the merge, float32, and their sums.

    Attributes:
      bits: of each model, and last of the merge: the sum of bits, and of bits times
        hash.
      rounding: by dtype the signal and the error of rounding.
    """

    merged: np.ndarray
    bits: list[tuple[int, int]]
    rounding: dict[str, tuple[jax.Array, jax.Array]]


class _Sums:
    """What is added up over blocks.

    Attributes:
      bits: as of a block, by parameter of ours.
    """

    def __init__(self, models: int) -> None:
        self.bits: list[dict[str, list[int]]] = [{} for _ in range(models + 1)]
        # Scalars on the device, which nobody waits for while blocks are merged.
        self._rounding: list[dict[str, tuple[jax.Array, jax.Array]]] = []

    def add(self, ours: str, block: _Block) -> None:
        for of_model, found in zip(self.bits, block.bits, strict=True):
            held = of_model.setdefault(ours, [0, 0])
            held[:] = ((a + b) % 2**32 for a, b in zip(held, found))
        self._rounding.append(block.rounding)

    def ratios(self) -> dict[str, float]:
        parts = jax.device_get(self._rounding)
        signal = sum(float(part[DTYPES[0]][0]) for part in parts)
        errors = {dtype: sum(float(x[dtype][1]) for x in parts) for dtype in DTYPES}
        return {d: signal / x if x > 0 else math.inf for d, x in errors.items()}


def merge_files(
    sources: Sequence[TensorSource],
    weights: Sequence[float],
    decoder: Decoder,
    directory: pathlib.Path,
    dtype: str,
    *,
    advance: Callable[[], None] = lambda: None,
) -> FileMerge:
    """Writes sum_k w_k theta_k as the safetensors files of a directory.

    Args:
      sources: models of the decoder's architecture.
      weights: one real number per model.
      dtype: of what is written, "float32" or "bfloat16".
      advance: called after each tensor.

    Raises:
      BadInput: as ``huggingface.read_params``.
    """
    for source in sources:
        check_tensors(source, decoder.config)
        check_tied_head(source, decoder.config)
    places = {place.theirs: place for place in _places(decoder)}
    sums = _Sums(len(sources))
    buffers: dict[int, np.ndarray] = {}

    def read(theirs: str) -> Iterator[np.ndarray]:
        place = places[theirs]
        for rows in place.blocks():
            block = _merge_rows(sources, weights, place, rows, buffers)
            sums.add(place.ours, block)
            yield block.merged.astype(jnp.dtype(dtype))
        advance()

    kinds = {name: (jnp.dtype(dtype), place.shape) for name, place in places.items()}
    write_tensors(directory, kinds, read)
    shapes = layout(flatten_params(decoder.abstract_params("float32")))
    *digests, merged = (digest(bits, shapes) for bits in sums.bits)
    return FileMerge(digests, merged, sums.ratios())


def _merge_rows(
    sources: Sequence[TensorSource],
    weights: Sequence[float],
    place: _Place,
    rows: tuple[int, int],
    buffers: dict[int, np.ndarray],
) -> _Block:
    index = place.index(*rows).reshape(-1)
    size = next((x for x in (SMALL, LARGE) if index.size <= x), index.size)
    if size not in buffers:
        buffers[size] = _aligned((len(sources), size))
    x_KN, names = buffers[size], [f"{place.theirs} of {s.origin}" for s in sources]
    # Zeros behind the numbers, which add nothing to any sum.
    x_KN[:, index.size :] = 0
    hashes = np.pad(odd_hash(index), (0, size - index.size))
    for x, source, name in zip(x_KN, sources, names):
        found = check_floats(source.rows(place.theirs, *rows), name)
        x[: index.size] = found.reshape(-1)
    hot = one_hot_index(np.asarray([weights], np.float64))
    if hot is None:
        # A program apart: in one with the additions XLA rounds otherwise.
        total = scale_leaf(x_KN[0], np.float32(sum(map(float, weights))))
        total = _add(total, x_KN, np.asarray(weights, np.float32))
    else:
        total = x_KN[hot]
    rounding = _rounding(total, x_KN[0], hot is not None)
    bits = [_bit_sums(x, hashes) for x in x_KN]  # while the device adds
    # JAX reads the buffer itself: both are waited for before it is filled again.
    merged, rounding = np.asarray(total), jax.device_get(rounding)
    # What is not finite stays so in a sum, whatever its weight.
    if hot is not None or not np.isfinite(merged).all():
        for x, name in zip(x_KN, names):
            check_finite(x, name)
    bits.append(_bit_sums(merged, hashes))
    return _Block(merged[: index.size], bits, rounding)


def _aligned(shape: tuple[int, int]) -> np.ndarray:
    """Returns float32 numbers that lie where JAX on a CPU takes them uncopied."""
    skipped = 64 // 4
    whole = np.zeros(math.prod(shape) + skipped, np.float32)
    return whole[-whole.ctypes.data // 4 % skipped :][: math.prod(shape)].reshape(shape)


def _bit_sums(x: np.ndarray, hashes: np.ndarray) -> tuple[int, int]:
    bits = x.view(np.uint32)
    plain, hashed = bits.sum(dtype=np.uint32), (bits * hashes).sum(dtype=np.uint32)
    return int(plain), int(hashed)


@jax.jit
def _add(total: jax.Array, x_KN: jax.Array, weights: jax.Array) -> jax.Array:
    """Adds every model's difference to model 0, in their order."""
    for x, weight in zip(x_KN[1:], weights[1:], strict=True):
        total = add_leaf(total, subtract_leaf(x, x_KN[0]), weight)
    return total


@functools.partial(jax.jit, static_argnames="copied")
def _rounding(total: jax.Array, base: jax.Array, copied: bool) -> dict[str, tuple]:
    """The parts of the ratios by dtype; of one model's copy nothing is rounded."""
    parts = {dtype: signal_and_error(total, base, dtype) for dtype in DTYPES}
    if copied:
        parts[DTYPES[0]] = parts[DTYPES[0]][0], jnp.zeros(())
    return parts
