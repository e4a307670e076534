"""The weighted sum of models in files, a few rows of a tensor at a time.

The same sum as ``merging.weighted_sum``. No more is in memory than a block of one
tensor: of the merge, of model 0 and of one other model. Digests and the
signal-to-rounding ratios are added up on the way. Blocks have one of a few sizes, so
that a handful of programs serves all tensors.
"""

import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
from tpmm_jax.store.fingerprint import bit_sums, digest, layout, odd_hash
from tpmm_jax.store.trees import flatten_params
from tpmm_jax.weights.huggingface import (
    TensorSource,
    check_floats,
    check_tensors,
    check_tied_head,
    not_finite,
)
from tpmm_jax.weights.names import names
from tpmm_jax.weights.writing import write_tensors

# Numbers in a block; a longer row is a block of its own.
SMALL, LARGE = 2**12, 2**18


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


class _Sums:
    """What is added up over blocks.

    Attributes:
      bits: of each model, and last of the merge: by parameter of ours the sum of bits,
        and of bits times hash.
      signal, errors: the parts of the ratios.
    """

    def __init__(self, models: int) -> None:
        self.bits: list[dict[str, list[int]]] = [{} for _ in range(models + 1)]
        self.signal = 0.0
        self.errors = {"float32": 0.0, "bfloat16": 0.0}

    def add_bits(self, model: int, ours: str, found: tuple[jax.Array, ...]) -> None:
        held = self.bits[model].setdefault(ours, [0, 0])
        held[:] = ((x + int(y)) % 2**32 for x, y in zip(held, found))

    def ratios(self) -> dict[str, float]:
        return {
            dtype: self.signal / error if error > 0 else math.inf
            for dtype, error in self.errors.items()
        }


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

    def read(theirs: str) -> Iterator[np.ndarray]:
        for rows in places[theirs].blocks():
            merged = _merge_rows(sources, weights, places[theirs], rows, sums)
            yield merged.astype(jnp.dtype(dtype))
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
    sums: _Sums,
) -> np.ndarray:
    """Returns some rows of a tensor of the merge, float32, and adds to the sums."""
    index = place.index(*rows)
    count, size = index.size, _padded(index.size)
    hashes = _hash(_pad(index, size))
    hot = one_hot_index(np.asarray([weights], np.float64))
    total_weight = jnp.float32(sum(map(float, weights)))
    for k, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        found = check_floats(source.rows(place.theirs, *rows), place.theirs)
        x = _pad(found, size)
        if k == 0:
            base, total, finite, bits = _first(x, total_weight, hashes)
        else:
            x, added, finite, bits = _next(total, x, base, jnp.float32(weight), hashes)
            total = added if hot is None else total
        if k == hot:
            total = base if k == 0 else x
        if not finite:
            raise not_finite(f"{place.theirs} of {source.origin}")
        sums.add_bits(k, place.ours, bits)
    bits, parts = _finish(total, base, hashes)
    sums.add_bits(len(sources), place.ours, bits)
    sums.signal += float(parts["float32"][0])
    for dtype, (_, error) in parts.items():
        # Of one model's copy nothing is rounded.
        copied = dtype == "float32" and hot is not None
        sums.errors[dtype] += 0.0 if copied else float(error)
    return np.asarray(total)[:count]


def _padded(count: int) -> int:
    return next((size for size in (SMALL, LARGE) if count <= size), count)


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    """Returns the numbers in a row, zeros behind them, which add nothing to any sum."""
    flat = x.reshape(-1)
    return flat if flat.size == size else np.pad(flat, (0, size - flat.size))


_hash = jax.jit(odd_hash)


@jax.jit
def _first(x: jax.Array, weight: jax.Array, hashes: jax.Array) -> tuple:
    """(float32, scaled, whether all are finite, sums of bits) of model 0."""
    x = x.astype(jnp.float32)
    return x, scale_leaf(x, weight), jnp.isfinite(x).all(), bit_sums(x, hashes)


@jax.jit
def _next(
    total: jax.Array,
    x: jax.Array,
    base: jax.Array,
    weight: jax.Array,
    hashes: jax.Array,
) -> tuple:
    """As ``_first`` of a later model, added to the total."""
    x = x.astype(jnp.float32)
    total = add_leaf(total, subtract_leaf(x, base), weight)
    return x, total, jnp.isfinite(x).all(), bit_sums(x, hashes)


@jax.jit
def _finish(total: jax.Array, base: jax.Array, hashes: jax.Array) -> tuple:
    """Sums of bits of the merge, and the parts of its ratios by dtype."""
    dtypes = ("float32", "bfloat16")
    parts = {dtype: signal_and_error(total, base, dtype) for dtype in dtypes}
    return bit_sums(total, hashes), parts
