"""Safetensors files, written as their tensors come.

The safetensors package wants a whole file's tensors at once. The format is its
length, a JSON header and the values one after the other; what is written here is what
the package writes, byte for byte.
"""

import io
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tpmm_jax.store.files import storage_errors

MODEL = "model.safetensors"
INDEX = f"{MODEL}.index.json"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

# A tensor's dtype and shape.
Kind = tuple[np.dtype, tuple[int, ...]]


def write_tensors(
    directory: pathlib.Path,
    kinds: Mapping[str, Kind],
    read: Callable[[str], Iterable[np.ndarray]],
    *,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Writes model.safetensors, or a sharded index above ``max_shard_bytes``.

    Args:
      kinds: of each tensor by its name, in the order in which they fill the files.
      read: returns a tensor's values, in pieces of its first axis; called once for
        each, in the same order.
    """
    files: list[dict[str, int]] = [{}]
    for name, (dtype, shape) in kinds.items():
        size = dtype.itemsize * math.prod(shape)
        if files[-1] and sum(files[-1].values()) + size > max_shard_bytes:
            files.append({})
        files[-1][name] = size
    where = {}
    for number, sizes in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file = MODEL if len(files) == 1 else file
        where.update(dict.fromkeys(sizes, file))
        _write_file(directory / file, {name: kinds[name] for name in sizes}, read)
    if len(files) > 1:
        total = sum(size for sizes in files for size in sizes.values())
        listing = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(listing, indent=2))


def _write_file(
    path: pathlib.Path,
    kinds: Mapping[str, Kind],
    read: Callable[[str], Iterable[np.ndarray]],
) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    start: dict[str, int] = {}
    end = 0
    for name in sorted(kinds):
        dtype, shape = kinds[name]
        start[name], end = end, end + dtype.itemsize * math.prod(shape)
        kind = {"dtype": DTYPES[dtype.name], "shape": list(shape)}
        header[name] = kind | {"data_offsets": [start[name], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The values begin at a multiple of eight.
    text += b" " * (-len(text) % 8)
    # Unbuffered: what the disk refuses is refused here, and not at the close.
    with storage_errors(path):
        file = path.open("wb", buffering=0)
    with file:
        _write(file, len(text).to_bytes(8, "little") + text, path)
        for name in kinds:
            file.seek(8 + len(text) + start[name])
            for piece in read(name):
                # As bytes: NumPy gives no buffer of bfloat16.
                _write(file, np.ascontiguousarray(piece).view(np.uint8).data, path)


def _write(file: io.FileIO, data: bytes | memoryview, path: pathlib.Path) -> None:
    left = memoryview(data).cast("B")
    with storage_errors(path):
        while left:
            left = left[file.write(left) :]
