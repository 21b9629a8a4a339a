"""The data type in which vLLM runs a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def choose_dtype(options: Mapping[str, Any], *, on_cpu: bool, cpuinfo: Path = CPUINFO) -> str:
    """The dtype named in a model's options; otherwise the fastest one of this CPU, or vLLM's choice on a GPU.

    A CPU without bfloat16 instructions is faster in float32.
    """
    if (named := options.get("dtype")) is not None:
        return str(named)
    if not on_cpu:
        return "auto"
    return "bfloat16" if _cpu_flags(cpuinfo) & BFLOAT16_FLAGS else "float32"


def _cpu_flags(cpuinfo: Path) -> set[str]:
    """The flags of the first processor; empty on systems other than Linux on x86."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return set(flags.split())
    return set()
