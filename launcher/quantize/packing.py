"""Rounds matrices to 4-bit integers with one scale for each group of weights in a row, and packs them.

The format is `pack-quantized` of compressed-tensors: a weight is `scale * q` with q in [-8, 7], and eight of q + 8 make
an int32, the first in its lowest bits. Weights are symmetric: there are no zero points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.quantize.tensors import Floats, bfloat16

BITS = 4
PER_INT32 = 32 // BITS
LEAST, MOST = -8, 7
# The largest weight of a group over 7 is the scale that clips nothing. A smaller one clips a few and is finer for the
# rest: the one with the least squared error is taken.
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)

Packed = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class Rounded:
    """Quantized rows. `packed`: int32 of shape (rows, columns / 8). `scales`: bfloat16 bits of shape (rows, groups)."""

    packed: Packed
    scales: np.ndarray[Any, np.dtype[np.uint16]]
    squared_error: float
    squared_norm: float


def quantize(weights: Floats, group_size: int) -> Rounded:
    """Round the rows of a matrix to nearest. `group_size` divides the number of columns, which is a multiple of 8."""
    rows, columns = weights.shape
    groups = weights.reshape(rows, columns // group_size, group_size)
    largest = np.abs(groups).max(axis=2, keepdims=True) / np.float32(MOST)
    best_error = np.full(largest.shape, np.inf, np.float32)
    best = np.zeros_like(groups, np.int8)
    best_scale = np.zeros(largest.shape, np.uint16)
    for shrink in SHRINK:
        # Rounded first: the engine sees the rounded scale, so the weights have to fit that one.
        bits = bfloat16(largest * np.float32(shrink))
        scale = (bits.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(scale > 0, np.rint(groups / scale), 0)
        values = np.clip(values, LEAST, MOST)
        error = np.square(groups - values * scale).sum(axis=2, keepdims=True)
        better = error < best_error
        best = np.where(better, values.astype(np.int8), best)
        best_scale = np.where(better, bits, best_scale)
        best_error = np.where(better, error, best_error)
    return Rounded(
        packed=pack(best.reshape(rows, columns)),
        scales=best_scale.reshape(rows, -1),
        squared_error=float(best_error.sum(dtype=np.float64)),
        squared_norm=float(np.square(weights).sum(dtype=np.float64)),
    )


def pack(values: np.ndarray[Any, np.dtype[np.int8]]) -> Packed:
    """Pack integers in [-8, 7], eight neighbours of a row in an int32."""
    rows, columns = values.shape
    nibbles = (values.astype(np.int16) - LEAST).astype(np.uint32).reshape(rows, columns // PER_INT32, PER_INT32)
    shifts = np.arange(PER_INT32, dtype=np.uint32) * BITS
    packed: Packed = np.bitwise_or.reduce(nibbles << shifts, axis=2).view(np.int32)
    return packed
