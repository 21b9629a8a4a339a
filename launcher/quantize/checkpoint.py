"""A checkpoint in Hugging Face's layout, and its 4-bit copy."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from launcher.errors import LaunchError
from launcher.quantize.packing import BITS, PER_INT32, quantize
from launcher.quantize.tensors import FLOATS, Tensor, read_header, read_rows, write_file

GROUP_SIZES = (128, 64, 32)
INDEX = "model.safetensors.index.json"
# The kernels of vLLM's CPU build handle blocks of this many weights.
MULTIPLE = 32
# The linear layers of a decoder, as Llama, Mistral, Qwen, Gemma, Phi and most others name them.
_LAYER = re.compile(r"(?:^|\.)layers\.\d+\..*_proj\.weight$")
_EXPERT = re.compile(r"\.experts?\.")
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
# Weights that are quantized together: bounds the memory that is used.
_WEIGHTS_AT_ONCE = 4_000_000


@dataclass
class Report:
    """The result. Sizes in bytes, errors relative to the weights (root mean square)."""

    layers: int = 0
    before: int = 0
    after: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    worst_layer: str = ""
    worst_error: float = 0.0

    @property
    def error(self) -> float:
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0

    def add(self, name: str, squared_error: float, squared_norm: float) -> None:
        self.layers += 1
        self.squared_error += squared_error
        self.squared_norm += squared_norm
        error = math.sqrt(squared_error / squared_norm) if squared_norm else 0.0
        if error >= self.worst_error:
            self.worst_layer, self.worst_error = name, error


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder. `files`: its safetensors files by name, with their tensors."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, list[Tensor]] = field(repr=False)

    @property
    def layers(self) -> list[Tensor]:
        """The matrices that are quantized. Embeddings, norms and the output layer are not among them."""
        return [tensor for tensors in self.files.values() for tensor in tensors if _is_layer(tensor)]


def read(folder: Path) -> Checkpoint:
    """Read the configuration and the headers of a model's files.

    Raises:
        LaunchError: there is no model, or one that cannot be quantized.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise LaunchError(f"{folder} is not a model: config.json cannot be read ({error}).") from error
    if "quantization_config" in config or "compression_config" in config:
        raise LaunchError(f"{folder} is quantized already; name the model that it was made from.")
    if parts := [name for name in ("vision_config", "audio_config") if name in config]:
        raise LaunchError(f"{folder} has a {parts[0]}: only models of text can be quantized.")
    names = _file_names(folder)
    if not names:
        raise LaunchError(f"{folder} has no safetensors files; convert the model to that format first.")
    checkpoint = Checkpoint(folder, config, {name: read_header(folder / name) for name in names})
    if any(_EXPERT.search(tensor.name) for tensors in checkpoint.files.values() for tensor in tensors):
        raise LaunchError(f"{folder} is a mixture of experts, which this packer does not support.")
    if not checkpoint.layers:
        raise LaunchError(
            f"{folder} ({', '.join(config.get('architectures') or ['unknown architecture'])}) has no matrices named"
            " `layers.N. ... _proj.weight`: its layers are not known here."
        )
    return checkpoint


def _file_names(folder: Path) -> list[str]:
    """The files with the weights. Some folders have a second copy in a format of the model's author."""
    if not (folder / INDEX).is_file():
        return sorted(file.name for file in folder.glob("*.safetensors"))
    try:
        return sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LaunchError(f"{folder / INDEX} cannot be read: {error}") from error


def fits(checkpoint: Checkpoint, group_size: int) -> bool:
    """Whether groups of this size fill the rows of all layers."""
    return all(layer.shape[1] % group_size == 0 for layer in checkpoint.layers)


def check_group_size(checkpoint: Checkpoint, group_size: int) -> None:
    """Raise `LaunchError` if the groups do not fit the layers, with the group sizes that do."""
    for tensor in checkpoint.layers:
        rows, columns = tensor.shape
        if columns % group_size:
            fitting = [size for size in GROUP_SIZES if fits(checkpoint, size)]
            advice = f"use --group-size {fitting[0]}" if fitting else "no group size fits this model"
            raise LaunchError(
                f"{tensor.name} has {columns} inputs, not a multiple of the group size {group_size}; {advice}."
            )
        if rows % MULTIPLE:
            raise LaunchError(f"{tensor.name} has {rows} outputs; the 4-bit kernels need a multiple of {MULTIPLE}.")


def write(
    checkpoint: Checkpoint, output: Path, group_size: int, progress: Callable[[int, int], None] = lambda *_: None
) -> Report:
    """Write the 4-bit copy. The folder appears when it is complete.

    Args:
        progress: called with the number of layers that are done, and of all.

    Raises:
        LaunchError: the output exists, or the disk has no room.
    """
    check_group_size(checkpoint, group_size)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise LaunchError(f"{output} exists and is not an empty folder.")
    plan = {
        name: [new for tensor in tensors for new in _new_tensors(tensor, group_size)]
        for name, tensors in checkpoint.files.items()
    }
    report = Report(
        before=sum((checkpoint.folder / name).stat().st_size for name in checkpoint.files),
        after=sum(tensor.nbytes for tensors in plan.values() for tensor in tensors),
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(output.parent).free) < report.after * 1.02 + 100_000_000:
            raise LaunchError(f"{output.parent} has {free / 1e9:.1f} GB free; {report.after / 1e9:.1f} GB are needed.")
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.unfinished-", dir=output.parent))
        try:
            _write_folder(checkpoint, work, plan, group_size, report, progress)
            work.chmod(0o755)
            work.replace(output)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        raise LaunchError(f"{output} cannot be written: {error.strerror or error}") from error
    report.after = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return report


def _write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    plan: dict[str, list[Tensor]],
    group_size: int,
    report: Report,
    progress: Callable[[int, int], None],
) -> None:
    total = len(checkpoint.layers)
    for name, tensors in plan.items():
        old = {tensor.name: tensor for tensor in checkpoint.files[name]}
        with (checkpoint.folder / name).open("rb") as source:
            writer = _Writer(source, old, group_size, report, lambda: progress(report.layers, total))
            write_file(folder / name, tensors, writer.content)
    if len(plan) > 1:
        weight_map = {tensor.name: name for name, tensors in plan.items() for tensor in tensors}
        index = {"metadata": {"total_size": report.after}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    config = {**checkpoint.config, "quantization_config": quantization_config(group_size)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in checkpoint.folder.iterdir():
        skipped = file.suffix in _OTHER_WEIGHTS or file.name in ("config.json", INDEX) or file.name.startswith(".")
        if file.is_file() and not skipped:
            shutil.copyfile(file, folder / file.name)


def quantization_config(group_size: int) -> dict[str, Any]:
    """The entry of config.json from which vLLM recognizes the format."""
    weights = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
        "observer": "mse",
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def _is_layer(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.dtype in FLOATS and _LAYER.search(tensor.name) is not None


def _new_tensors(tensor: Tensor, group_size: int) -> list[Tensor]:
    if not _is_layer(tensor):
        return [Tensor(tensor.name, tensor.dtype, tensor.shape)]
    rows, columns = tensor.shape
    return [
        Tensor(f"{tensor.name}_packed", "I32", (rows, columns // PER_INT32)),
        Tensor(f"{tensor.name}_scale", "BF16", (rows, columns // group_size)),
        Tensor(f"{tensor.name}_shape", "I64", (2,)),
    ]


class _Writer:
    """Returns the bytes of the new tensors of a file, which are asked for in the order of `_new_tensors`."""

    def __init__(
        self, source: BinaryIO, old: dict[str, Tensor], group_size: int, report: Report, done: Callable[[], None]
    ) -> None:
        self._source = source
        self._old = old
        self._group_size = group_size
        self._report = report
        self._done = done
        self._scales: list[bytes] = []

    def content(self, tensor: Tensor) -> Iterator[bytes]:
        if (same := self._old.get(tensor.name)) is not None:
            yield from self._copy(same)
            return
        name, _, kind = tensor.name.rpartition("_")
        if kind == "packed":
            yield from self._packed(self._old[name])
        elif kind == "scale":
            yield from self._scales
            self._scales = []
        else:
            yield np.array(self._old[name].shape, "<i8").tobytes()

    def _copy(self, tensor: Tensor) -> Iterator[bytes]:
        assert tensor.offset is not None
        self._source.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            piece = self._source.read(min(left, 1 << 24))
            if not piece:
                raise LaunchError(f"{tensor.name} is cut off: the file is incomplete.")
            left -= len(piece)
            yield piece

    def _packed(self, tensor: Tensor) -> Iterator[bytes]:
        rows, columns = tensor.shape
        step = max(1, _WEIGHTS_AT_ONCE // columns)
        error = norm = 0.0
        for start in range(0, rows, step):
            rounded = quantize(read_rows(self._source, tensor, slice(start, min(rows, start + step))), self._group_size)
            error += rounded.squared_error
            norm += rounded.squared_norm
            self._scales.append(rounded.scales.astype("<u2").tobytes())
            yield rounded.packed.astype("<i4").tobytes()
        self._report.add(tensor.name.removesuffix(".weight"), error, norm)
        self._done()
