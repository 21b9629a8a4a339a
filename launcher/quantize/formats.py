"""The formats of quantized layers that vLLM reads: compressed-tensors with 4 bits and with 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from launcher.quantize import packing
from launcher.quantize.tensors import Floats, Tensor

GROUP_SIZES = (128, 64, 32)
# The kernels of vLLM's CPU build handle blocks of this many weights.
MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """Some rows of a layer: the bytes of its first and second tensor, and the squares of error and weights, summed."""

    weights: bytes
    scales: bytes
    squared_error: float
    squared_norm: float


class Format(Protocol):
    """How a layer is stored."""

    def tensors(self, layer: Tensor) -> list[Tensor]:
        """The tensors that replace a layer's: the weights, the scales, and if the format has it, the shape."""

    def encode(self, rows: Floats) -> Encoded:
        """Quantize some rows of a layer."""

    def problem(self, layer: Tensor) -> str | None:
        """Why a layer cannot have this format; None if it can."""

    def config(self) -> dict[str, Any]:
        """The entry `quantization_config` of config.json, from which vLLM recognizes the format."""


@dataclass(frozen=True, slots=True)
class FourBits:
    """Weights of 4 bits with a scale for each `group_size` of a row; activations stay 16-bit floats (W4A16)."""

    group_size: int

    def tensors(self, layer: Tensor) -> list[Tensor]:
        rows, columns = layer.shape
        return [
            Tensor(f"{layer.name}_packed", "I32", (rows, columns // packing.PER_INT32)),
            Tensor(f"{layer.name}_scale", "BF16", (rows, columns // self.group_size)),
            Tensor(f"{layer.name}_shape", "I64", (2,)),
        ]

    def encode(self, rows: Floats) -> Encoded:
        done = packing.quantize(rows, self.group_size)
        packed, scales = done.packed.astype("<i4").tobytes(), done.scales.astype("<u2").tobytes()
        return Encoded(packed, scales, done.squared_error, done.squared_norm)

    def problem(self, layer: Tensor) -> str | None:
        rows, columns = layer.shape
        if columns % self.group_size:
            return f"{columns} inputs, not a multiple of the group size {self.group_size}"
        return f"{rows} outputs, not a multiple of {MULTIPLE}, as the kernels need it" if rows % MULTIPLE else None

    def config(self) -> dict[str, Any]:
        weights = {"num_bits": 4, "strategy": "group", "group_size": self.group_size, "actorder": None}
        return _config("pack-quantized", {**_WEIGHTS, **weights, "observer": "mse"}, None)


@dataclass(frozen=True, slots=True)
class EightBits:
    """Weights of 8 bits with a scale for each row. Activations are quantized while the model runs (W8A8)."""

    def tensors(self, layer: Tensor) -> list[Tensor]:
        return [
            Tensor(layer.name, "I8", layer.shape),
            Tensor(f"{layer.name}_scale", "F32", (layer.shape[0], 1)),
        ]

    def encode(self, rows: Floats) -> Encoded:
        scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        values = np.rint(np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0))
        error, norm = np.square(rows - values * scales), np.square(rows)
        return Encoded(
            values.astype(np.int8).tobytes(),
            scales.astype("<f4").tobytes(),
            float(error.sum(dtype=np.float64)),
            float(norm.sum(dtype=np.float64)),
        )

    def problem(self, layer: Tensor) -> str | None:
        for number, name in zip(layer.shape, ("outputs", "inputs"), strict=True):
            if number % MULTIPLE:
                return f"{number} {name}, not a multiple of {MULTIPLE}, as the kernels need it"
        return None

    def config(self) -> dict[str, Any]:
        weights = {**_WEIGHTS, "num_bits": 8, "strategy": "channel", "observer": "minmax"}
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return _config("int-quantized", weights, activations)


_WEIGHTS = {"type": "int", "symmetric": True, "dynamic": False}


def _config(name: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
