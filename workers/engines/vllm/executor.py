"""On a CPU: the model runs in the engine's own process, on all cores that the worker may use.

vLLM's CPU platform always runs the model in a process of its own, and the engine's process waits for each step in a
busy loop; one core is left out of the computation for that. On two cores that is half the machine. vLLM takes an
executor by its import path (`distributed_executor_backend`), so here is the one that it uses on a GPU, under a name
that the CPU platform leaves alone. `docs/benchmarks.md` says what it brings.
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
# Whoever sets one of these has thought of placement: vLLM does as it is told then.
PLACED = ("distributed_executor_backend", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


class InProcessExecutor(UniProcExecutor):  # type: ignore[misc]
    """One worker, in the engine's process."""


def cpu_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What to add to a model's engine options on a CPU; also tells OpenMP, by the environment, how many threads to use.

    Nothing on a GPU, on several NUMA nodes (vLLM binds a process to each), and where placement was chosen by hand.
    """
    if not current_platform.is_cpu() or any(name in options for name in PLACED):
        return {}
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto" or not _one_node():
        return {}
    # Read by the engine's process, which is spawned, when it loads OpenMP.
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores()))
    # A thread that waits for another, whose core another process has for the moment, sleeps instead of spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return {"distributed_executor_backend": f"{InProcessExecutor.__module__}.{InProcessExecutor.__qualname__}"}


def _one_node() -> bool:
    return not NODES.exists() or NODES.read_text().strip() == "0"


def _cores() -> int:
    """Physical cores that this process may use, as far as its container's quota goes."""
    threads = os.sched_getaffinity(0)
    siblings = [CPUS / f"cpu{number}" / "topology" / "thread_siblings_list" for number in threads]
    cores = len({path.read_text() for path in siblings}) if all(path.exists() for path in siblings) else len(threads)
    return max(1, min(cores, _quota() or cores))


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Whole cores that cgroup v2 allows; None without a limit."""
    try:
        allowed, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return None if allowed == "max" else max(1, int(allowed) // int(period))
