"""Reads and writes safetensors files tensor by tensor, as bytes, so that neither torch nor a whole file is loaded.

`safetensors.numpy` has no bfloat16, which most checkpoints use. The format: the length of the header as 8 bytes, a JSON
object from name to dtype, shape and offsets, and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from launcher.errors import LaunchError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = {"F32", "F16", "BF16"}
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file. `offset`: of its first byte in the file; None in a file that is yet to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        LaunchError: the file is damaged, or has a dtype that is not known here.
    """
    try:
        with file.open("rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            header = json.loads(source.read(length))
        header.pop("__metadata__", None)
        tensors = [
            Tensor(name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError) as error:
        raise LaunchError(f"{file} cannot be read as a safetensors file: {error}") from error
    if unknown := {tensor.dtype for tensor in tensors} - ITEM_BYTES.keys():
        raise LaunchError(f"{file} has tensors of type {', '.join(sorted(unknown))}: it is quantized already.")
    return sorted(tensors, key=lambda tensor: tensor.offset or 0)


def read_rows(source: BinaryIO, tensor: Tensor, rows: slice) -> Floats:
    """Some rows of a matrix of floats, as float32."""
    assert tensor.offset is not None
    width = tensor.shape[1] * ITEM_BYTES[tensor.dtype]
    source.seek(tensor.offset + rows.start * width)
    data = source.read((rows.stop - rows.start) * width)
    return as_float32(data, tensor.dtype).reshape(-1, tensor.shape[1])


def as_float32(data: bytes, dtype: str) -> Floats:
    """Decode little-endian floats of a dtype of `FLOATS`."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def bfloat16(values: Floats) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The bits of these values as bfloat16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_file(file: Path, tensors: Sequence[Tensor], content: Callable[[Tensor], Iterable[bytes]]) -> None:
    """Write a safetensors file. `content` returns the bytes of a tensor, in pieces."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            written = sum(target.write(piece) for piece in content(tensor))
            assert written == tensor.nbytes, f"{tensor.name}: {written} bytes instead of {tensor.nbytes}"
