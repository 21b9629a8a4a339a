"""The packer: its format, what it copies, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launcher.errors import LaunchError
from launcher.quantize import checkpoint
from launcher.quantize.__main__ import main
from launcher.quantize.formats import EightBits, FourBits
from launcher.quantize.packing import quantize
from launcher.quantize.tensors import as_float32, bfloat16, read_header

WIDTH = 64
RANDOM = np.random.default_rng(1)


def matrix(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RANDOM.normal(0, 0.05, (rows, columns)).astype(np.float32)


def model(folder: Path, **config: Any) -> dict[str, Any]:
    """A model with one layer, in two files, one of which has 16-bit floats. Returns its tensors."""
    folder.mkdir()
    first: dict[str, Any] = {
        "model.embed_tokens.weight": matrix(100, WIDTH),
        "model.layers.0.self_attn.q_proj.weight": matrix(WIDTH, WIDTH),
        "model.layers.0.input_layernorm.weight": np.ones(WIDTH, np.float32),
    }
    second: dict[str, Any] = {
        "model.layers.0.mlp.down_proj.weight": matrix(WIDTH, 2 * WIDTH).astype(np.float16),
        "lm_head.weight": matrix(100, WIDTH),
    }
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, tensors in zip(names, (first, second), strict=True):
        save_file(tensors, folder / name)
    weight_map = {key: name for name, part in zip(names, (first, second), strict=True) for key in part}
    (folder / checkpoint.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    (folder / "tokenizer.json").write_text("{}")
    # The author's second copy of the weights, which is not a part of the model.
    save_file(second, folder / "consolidated.safetensors")
    return first | second


def unpacked(folder: Path, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The weights of a layer, decoded value by value, by the format's definition."""
    tensors = {tensor.name: (file, tensor) for file in folder.glob("*.safetensors") for tensor in read_header(file)}

    def raw(part: str) -> tuple[bytes, tuple[int, ...]]:
        file, tensor = tensors[f"{name}_{part}"]
        assert tensor.offset is not None
        return file.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes], tensor.shape

    shape = np.frombuffer(raw("shape")[0], "<i8")
    data, packed_shape = raw("packed")
    words = np.frombuffer(data, "<u4").reshape(packed_shape)
    data, scale_shape = raw("scale")
    scales = as_float32(data, "BF16").reshape(scale_shape)
    result = np.zeros(shape, np.float64)
    for row in range(shape[0]):
        for column in range(shape[1]):
            value = (int(words[row, column // 8]) >> (4 * (column % 8)) & 15) - 8
            result[row, column] = value * float(scales[row, column * scale_shape[1] // shape[1]])
    return result


def test_packs_the_layers_and_copies_the_rest(tmp_path: Path) -> None:
    tensors = model(tmp_path / "model")
    done: list[tuple[int, int]] = []
    report = checkpoint.write(
        checkpoint.read(tmp_path / "model"), tmp_path / "out", FourBits(32), lambda *counts: done.append(counts)
    )
    assert (report.layers, done) == (2, [(1, 2), (2, 2)])
    assert 0.02 < report.error < 0.12
    assert report.after < report.before
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        weights = tensors[name].astype(np.float64)
        error = np.abs(unpacked(tmp_path / "out", name) - weights).reshape(len(weights), -1, 32)
        # Half a step, or where the largest weights are clipped, a fifth of the largest one.
        largest = np.abs(weights).reshape(len(weights), -1, 32).max(axis=2, keepdims=True)
        assert (error <= 0.21 * largest).all()
        assert np.sqrt((error**2).mean()) < 0.12 * weights.std()
    data = (tmp_path / "out" / "model-00002-of-00002.safetensors").read_bytes()
    assert tensors["lm_head.weight"].tobytes() in data
    index = json.loads((tmp_path / "out" / checkpoint.INDEX).read_text())["weight_map"]
    assert index["model.layers.0.mlp.down_proj.weight_packed"] == "model-00002-of-00002.safetensors"
    assert "model.layers.0.mlp.down_proj.weight" not in index
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        checkpoint.INDEX,
        "tokenizer.json",
    ]


def test_the_configuration_names_the_format(tmp_path: Path) -> None:
    model(tmp_path / "model", hidden_size=WIDTH)
    checkpoint.write(checkpoint.read(tmp_path / "model"), tmp_path / "out", FourBits(64))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hidden_size"] == WIDTH
    quantization = config["quantization_config"]
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "pack-quantized")
    weights = quantization["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 64, True)


def test_eight_bits_have_a_scale_for_each_row(tmp_path: Path) -> None:
    weights = model(tmp_path / "model")["model.layers.0.mlp.down_proj.weight"].astype(np.float32)
    report = checkpoint.write(checkpoint.read(tmp_path / "model"), tmp_path / "out", EightBits())
    assert report.error < 0.01
    file = tmp_path / "out" / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    values = tensors["model.layers.0.mlp.down_proj.weight"]
    scales = tensors["model.layers.0.mlp.down_proj.weight_scale"]
    assert values.dtype == np.dtype(np.int8)
    assert scales.shape == (WIDTH, 1)
    assert (np.abs(values * scales - weights) <= 0.501 * scales).all()
    assert (np.abs(values).max(axis=1) == 127).all()
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"
    assert config["config_groups"]["group_0"]["input_activations"]["dynamic"] is True
    zeros = EightBits().encode(np.zeros((2, 4), np.float32))
    assert (zeros.weights, zeros.squared_error) == (bytes(8), 0)


def test_values_that_four_bits_hold_are_exact() -> None:
    scale = np.float32(0.25)
    values = np.tile(np.arange(-7, 8, dtype=np.float32), 8)[: 2 * 32].reshape(2, 32)
    rounded = quantize(values * scale, 32)
    assert rounded.squared_error == 0
    assert np.array_equal(as_float32(rounded.scales.tobytes(), "BF16"), [scale, scale])


def test_a_group_of_zeros_stays_zero() -> None:
    rounded = quantize(np.zeros((1, 32), np.float32), 32)
    assert rounded.squared_error == 0
    assert rounded.packed.view(np.uint32).tolist() == [[0x88888888] * 4]


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 1.004, -2.5], np.float32)
    assert as_float32(bfloat16(values).tobytes(), "BF16").tolist() == [1.0, 1.0, 1.015625, 1.0078125, -2.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"quantization_config": {}}'), "is quantized already"),
        (lambda folder: (folder / "config.json").write_text('{"vision_config": {}}'), "only models of text"),
        (lambda folder: (folder / checkpoint.INDEX).write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"no tensors"), "safetensors file"),
    ],
)
def test_refuses_what_is_no_model_to_quantize(tmp_path: Path, change: Any, message: str) -> None:
    model(tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(LaunchError, match=message):
        checkpoint.read(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "message"),
    [("transformer.h.0.attn.c_attn.weight", "not known here"), ("model.layers.0.experts.0.up_proj.weight", "experts")],
)
def test_refuses_an_architecture_that_it_does_not_know(tmp_path: Path, name: str, message: str) -> None:
    save_file({name: matrix(WIDTH, WIDTH)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LaunchError, match=message):
        checkpoint.read(tmp_path)


def test_refuses_groups_that_do_not_fill_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(tmp_path / "model")
    assert main([str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--group-size", "128"]) == 1
    assert "64 inputs, not a multiple of the group size 128; use --group-size 64" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    model(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(LaunchError, match="not an empty folder"):
        checkpoint.write(checkpoint.read(tmp_path / "model"), tmp_path / "out", FourBits(64))


def test_refuses_to_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "model")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(LaunchError, match=r"0\.0 GB free"):
        checkpoint.write(checkpoint.read(tmp_path / "model"), tmp_path / "out", FourBits(64))


def test_a_run_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    model(tmp_path / "model")

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(checkpoint.read(tmp_path / "model"), tmp_path / "out", FourBits(64), interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_ctrl_c_ends_it_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model(tmp_path / "model")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_file", interrupt)
    assert main([str(tmp_path / "model"), "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "Ended; nothing was written.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_prints_sizes_and_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(tmp_path / "model")
    assert main([str(tmp_path / "model"), "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "2 layers" in output
    assert "error of the weights: " in output
    assert f"model: {tmp_path / 'out'}" in output


def test_an_unknown_model_is_named_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-model", "--output", "unused"]) == 1
    error = capsys.readouterr().err
    assert "no-such-model is neither a folder nor a model of" in error
    assert "smollm2" in error
