"""Runs the model in the engine's process on a CPU, on all cores that the worker may use.

vLLM's CPU platform runs the model in a separate process for which the engine's process waits in a busy loop, and keeps
one core free for that: half of a machine with two cores. vLLM accepts an executor by import path
(`distributed_executor_backend`). This is the executor that it uses on a GPU, under a name that the CPU platform does
not replace. Measurements: docs/benchmarks.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

NODES = Path("/sys/devices/system/node/online")
CPUS = Path("/sys/devices/system/cpu")
# If one of these options is set, vLLM's own placement is used.
PLACEMENT_OPTIONS = (
    "distributed_executor_backend",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
)


class InProcessExecutor(UniProcExecutor):  # type: ignore[misc]
    """One worker, in the engine's process."""

    def _init_executor(self) -> None:
        # Imported here: only the engine's process needs vLLM's kernels.
        from workers.engines.vllm import int4_kernel

        int4_kernel.register()
        super()._init_executor()


EXECUTOR = f"{InProcessExecutor.__module__}.{InProcessExecutor.__qualname__}"


def cpu_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Engine options for a CPU. Also sets environment variables, which the engine's process inherits.

    Empty on a GPU, with several NUMA nodes (vLLM binds a process to each), and if the options choose a placement.
    """
    if not current_platform.is_cpu():
        return {}
    if options.get("enforce_eager"):
        # vLLM compiles a function of its sampler even then, with a C++ compiler: the first request with `logprobs`
        # would stop all others for half a minute.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if any(name in options for name in PLACEMENT_OPTIONS):
        return {}
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto" or not _one_node():
        return {}
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores()))
    # A waiting thread sleeps instead of spinning: the thread it waits for may need its core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return {"distributed_executor_backend": EXECUTOR}


def _one_node() -> bool:
    return not NODES.exists() or NODES.read_text().strip() == "0"


def _cores() -> int:
    """Number of physical cores that this process may use, limited by its container's quota."""
    threads = os.sched_getaffinity(0)
    siblings = [CPUS / f"cpu{number}" / "topology" / "thread_siblings_list" for number in threads]
    cores = len({path.read_text() for path in siblings}) if all(path.exists() for path in siblings) else len(threads)
    return max(1, min(cores, _quota() or cores))


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Number of whole cores that cgroup v2 allows; None without a limit."""
    try:
        allowed, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return None if allowed == "max" else max(1, int(allowed) // int(period))
