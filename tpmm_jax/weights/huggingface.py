"""Hugging Face directories: safetensors in and out, one tensor at a time."""

import itertools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from tpmm_jax.axes import Params
from tpmm_jax.data.pointers import refuse_pointer
from tpmm_jax.errors import BadInput
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.models.lora import get, put
from tpmm_jax.weights.agreement import agree_on_files
from tpmm_jax.weights.names import Name, names
from tpmm_jax.weights.writing import INDEX, MODEL, write_tensors

# Tensors that some checkpoints carry and no model needs.
DERIVED = ("rotary_emb.inv_freq",)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Index = tuple[slice, ...]


@runtime_checkable
class TensorSource(Protocol):
    """A checkpoint that hands out one tensor at a time, in Hugging Face terms.

    Attributes:
      origin: its file or folder, for messages.
    """

    origin: str

    def files(self) -> list[pathlib.Path]: ...

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> np.ndarray: ...

    def rows(self, name: str, start: int, stop: int) -> np.ndarray: ...


class SafetensorsDirectory:
    """One model.safetensors or a sharded index; files stay memory-mapped."""

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = pathlib.Path(directory)
        self.origin = str(directory)
        self._files: dict[str, Any] = {}
        self._where = self._index()

    def _index(self) -> dict[str, str]:
        index = self.directory / INDEX
        single = self.directory / MODEL
        # As in transformers: saving into a folder that was sharded leaves its index.
        if index.exists() and not single.exists():
            try:
                where = dict(json.loads(index.read_text())["weight_map"])
            except OSError as error:
                raise BadInput(f"{index} cannot be read: {error.strerror}") from None
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BadInput(f"{index} is not a safetensors index: {error}") from None
            held: dict[str, set[str]] = {}
            for name, file in where.items():
                if not isinstance(file, str) or pathlib.Path(file).name != file:
                    raise BadInput(
                        f"{index}: {name} is in {file!r}; wanted a file of this folder"
                    )
                if file not in held:
                    held[file] = set(self._open(file).keys())
                if name not in held[file]:
                    raise BadInput(f"{index}: {self.directory / file} has no {name}")
            return where
        if single.exists():
            return dict.fromkeys(self._open(single.name).keys(), single.name)
        kinds = sorted(p.name for p in self.directory.iterdir())[:12]
        raise BadInput(
            f"{self.directory} holds neither {MODEL} nor {INDEX} (it holds "
            f"{', '.join(kinds) or 'nothing'}); other weight formats are not read: "
            "convert them with transformers' save_pretrained(safe_serialization=True)"
        )

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.directory / file
            refuse_pointer(path)
            try:
                self._files[file] = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise BadInput(f"{path} cannot be read: {error}") from None
        return self._files[file]

    def files(self) -> list[pathlib.Path]:
        return [self.directory / file for file in set(self._where.values())]

    def names(self) -> list[str]:
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape; its values are not read."""
        return tuple(self._open(self._where[name]).get_slice(name).get_shape())

    def tensor(self, name: str) -> np.ndarray:
        return numpy_tensor(self._open(self._where[name]), name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns a part of a tensor's first axis; no more is read."""
        return numpy_tensor(self._open(self._where[name]), name, slice(start, stop))


def numpy_tensor(file: Any, name: str, rows: slice | None = None) -> np.ndarray:
    """Returns a tensor of an open safetensors file, or some rows of one.

    Raises:
      BadInput: NumPy does not have its dtype.
    """
    try:
        return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    except (AttributeError, TypeError):
        dtype = file.get_slice(name).get_dtype()
        raise BadInput(
            f"{name} holds {dtype}; wanted float32, bfloat16 or float16 (quantised "
            "checkpoints are not read)"
        ) from None


def read_params(source: TensorSource, decoder: Decoder, dtype: str) -> Params:
    """Returns the parameters, each read onto its sharding shard by shard.

    The host holds one tensor of the checkpoint (two, where a tied head is stored too)
    and one distinct shard of one parameter at a time; replicas share it. A tensor is
    read once for each distinct shard.

    Raises:
      BadInput: tensors that are missing, left over, of another shape or not finite, a
        tied head that is not the embedding, or processes whose files differ.
    """
    agree_on_files(source.files(), source.origin)
    config = decoder.config
    target = decoder.abstract_params(dtype)
    check_tensors(source, config, target)
    check_tied_head(source, config)
    params: Params = {}
    for name in names(config):
        leaf = get(target, name.path)
        put(params, name.path, _read_leaf(source, name, leaf))
    return params


def check_tensors(
    source: TensorSource, config: ModelConfig, target: Params | None = None
) -> None:
    """Raises BadInput unless the checkpoint holds exactly what the model needs.

    Names and shapes alone are read, so that a config of absurd sizes costs nothing.

    Args:
      target: the model's abstract parameters, if they are known.
    """
    _check_names(source, config)
    target = Decoder(config).abstract_params() if target is None else target
    wrong = []
    for name in names(config):
        leaf = get(target, name.path)
        wanted = name.their_shape(leaf.shape[len(name.axes) :])
        wrong += [
            f"{theirs} has shape {found}; wanted {wanted}"
            for _, theirs in name.tensors(config)
            if (found := source.shape(theirs)) != wanted
        ]
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise BadInput(
            f"{source.origin}: the config's sizes are not those of the weights: "
            + ", ".join(wrong[:4])
            + more
        )


def _check_names(source: TensorSource, config: ModelConfig) -> None:
    wanted = {tensor for name in names(config) for _, tensor in name.tensors(config)}
    found = {name for name in source.names() if not name.endswith(DERIVED)}
    if config.tie_embeddings:
        found.discard(HEAD)
    purpose = f"a {config.family} model of {config.num_layers} layers"
    check_same(found, wanted, source.origin, purpose)


def check_same(
    found: set[str],
    wanted: set[str],
    holder: str,
    purpose: str,
    *,
    most: int = 8,
    advice: str = "",
) -> None:
    """Raises BadInput for missing or unknown tensors, and names ``most`` of them."""
    for what, some in (("lacks", wanted - found), ("has unknown", found - wanted)):
        if some:
            shown = ", ".join(sorted(some)[:most]) + (
                ", ..." if len(some) > most else ""
            )
            raise BadInput(
                f"{holder} {what} {len(some)} tensors for {purpose}: {shown}{advice}"
            )


def check_finite(weights: np.ndarray, name: str) -> None:
    """Raises BadInput for a weight that is NaN or infinite."""
    if not np.isfinite(weights).all():
        raise BadInput(
            f"{name} has weights that are NaN or infinite; the training that "
            "wrote it went wrong: take an earlier checkpoint"
        )


def check_tied_head(source: TensorSource, config: ModelConfig) -> None:
    """Refuses a head that is not the embedding it is said to be.

    transformers leaves such a pair untied; to drop the head would change every logit.
    """
    if not config.tie_embeddings or HEAD not in source.names():
        return
    if not np.array_equal(source.tensor(HEAD), source.tensor(EMBEDDING)):
        raise BadInput(
            f"the checkpoint has a {HEAD} that differs from {EMBEDDING}, while "
            "config.json ties them (tie_word_embeddings, which this family may leave "
            "out); write tie_word_embeddings: false there if the head is meant"
        )


def _read_leaf(source: TensorSource, name: Name, leaf: Any) -> jax.Array:
    """Returns a parameter, read one tensor after the other into each shard."""
    lead = len(name.axes)
    shape = leaf.shape[lead:]

    def read_shard(index: Index) -> np.ndarray:
        places = [range(*s.indices(n)) for s, n in zip(index, leaf.shape)]
        shard = np.empty([len(x) for x in places], leaf.dtype)
        # Where a tensor belongs in the shard, and which one it is.
        slots = np.ndindex(*shard.shape[:lead])
        for slot, place in zip(slots, itertools.product(*places[:lead])):
            theirs = name.tensor(*place)
            tensor = check_floats(source.tensor(theirs), theirs)
            shard[slot] = name.to_ours(tensor, shape)[index[lead:]]
            check_finite(shard[slot], theirs)
        return shard

    if leaf.sharding is None:
        return jnp.asarray(read_shard(tuple(slice(None) for _ in leaf.shape)))
    return _put_shards(leaf, read_shard)


def check_floats(tensor: np.ndarray, theirs: str) -> np.ndarray:
    """Returns a tensor as it is; raises BadInput for another kind of number."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise BadInput(
            f"{theirs} holds {tensor.dtype}; wanted floating-point weights "
            "(quantised checkpoints are not read)"
        )
    return tensor


def _put_shards(leaf: Any, shard: Callable[[Index], np.ndarray]) -> jax.Array:
    """Returns the array of a leaf's shape and sharding, one distinct shard at a time.

    make_array_from_callback would build the shards of all devices before it hands
    over the first.
    """
    wanting: dict[tuple, tuple[Index, list[jax.Device]]] = {}
    where = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    for device, index in where.items():
        key = tuple(s.indices(n) for s, n in zip(index, leaf.shape))
        wanting.setdefault(key, (index, []))[1].append(device)
    arrays: list[jax.Array] = []
    for index, devices in wanting.values():
        block = shard(index)
        copies = [jax.device_put(block, device) for device in devices]
        # A transfer under way keeps its block in the host's memory.
        arrays += jax.block_until_ready(copies)
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays)


def write_params(
    params: Params,
    config: ModelConfig,
    directory: str | os.PathLike,
    *,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Writes model.safetensors, or a sharded index above ``max_shard_bytes``.

    The host holds one tensor at a time.
    """
    kinds, places = {}, {}
    for name in names(config):
        leaf = get(params, name.path)
        shape = name.their_shape(leaf.shape[len(name.axes) :])
        for index, theirs in name.tensors(config):
            kinds[theirs] = leaf.dtype, shape
            places[theirs] = name, index
    write_tensors(
        pathlib.Path(directory),
        kinds,
        lambda theirs: [_fetch(params, *places[theirs])],
        max_shard_bytes=max_shard_bytes,
    )


def _fetch(params: Params, name: Name, index: tuple[int, ...]) -> np.ndarray:
    """Returns one of Hugging Face's tensors, from the devices."""
    leaf = get(params, name.path)
    # An empty index would copy the leaf on its device.
    return name.to_theirs(np.asarray(leaf[index] if index else leaf))
