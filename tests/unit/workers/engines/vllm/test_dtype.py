"""The dtype of a model: bfloat16 on CPUs with instructions for it, unless the model's options name one."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.config.models.vllm import VllmModel, VllmOptions
from workers.engines.vllm.dtype import choose_dtype

CPUINFO = """\
processor\t: 0
model name\t: Some CPU
flags\t\t: fpu {}sse2 avx512f
vmx flags\t: avx512_bf16

processor\t: 1
flags\t\t: fpu sse2
"""


def cpuinfo(folder: Path, content: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(content)
    return file


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("avx512_bf16 ", "bfloat16"),
        ("amx_bf16 ", "bfloat16"),
        ("avx512_bf16 amx_bf16 ", "bfloat16"),
        ("", "float32"),
        ("avx512_bf16_emulated bf16 ", "float32"),
    ],
)
def test_the_cpus_flags_decide(tmp_path: Path, flags: str, dtype: str) -> None:
    assert choose_dtype({}, on_cpu=True, cpuinfo=cpuinfo(tmp_path, CPUINFO.format(flags))) == dtype


@pytest.mark.parametrize("content", ["", "processor\t: 0\nFeatures\t: fp asimd bf16\n"], ids=["empty", "arm"])
def test_other_processors_use_float32(tmp_path: Path, content: str) -> None:
    assert choose_dtype({}, on_cpu=True, cpuinfo=cpuinfo(tmp_path, content)) == "float32"


def test_systems_without_cpuinfo_use_float32(tmp_path: Path) -> None:
    assert choose_dtype({}, on_cpu=True, cpuinfo=tmp_path / "missing") == "float32"


def test_vllm_chooses_on_a_gpu(tmp_path: Path) -> None:
    assert choose_dtype({}, on_cpu=False, cpuinfo=cpuinfo(tmp_path, CPUINFO.format("avx512_bf16 "))) == "auto"


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("named", ["float32", "half", "auto"])
def test_a_named_dtype_takes_precedence(tmp_path: Path, on_cpu: bool, named: str) -> None:
    file = cpuinfo(tmp_path, CPUINFO.format("avx512_bf16 "))
    assert choose_dtype({"dtype": named}, on_cpu=on_cpu, cpuinfo=file) == named


def test_the_fingerprint_depends_on_the_dtype_used() -> None:
    def model(**options: object) -> VllmModel:
        return VllmModel(name="m", engine="vllm", model="x", options=VllmOptions(**options))  # type: ignore[typeddict-item]

    chosen = {dtype: model(max_num_seqs=4).with_dtype(dtype).fingerprint for dtype in ("bfloat16", "float32")}
    assert chosen["bfloat16"] != chosen["float32"]
    assert model(dtype="float32", max_num_seqs=4).with_dtype("float32").fingerprint == chosen["float32"], "named"
    assert model(dtype="float", max_num_seqs=4).with_dtype("float32").fingerprint == chosen["float32"], "its other name"
    assert model(max_num_seqs=5).with_dtype("float32").fingerprint != chosen["float32"]
