"""Tensor and pipeline parallelism: whether there are as many devices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from vllm.platforms import current_platform

from workers.engines.vllm.checks.problem import Problem

# Processes of one engine, and engines of this machine.
_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
_REPLICAS = "data_parallel_size"
_REPLICAS_HERE = "data_parallel_size_local"


def too_few_devices(options: Mapping[str, Any]) -> Iterator[Problem]:
    """More devices than this machine has, unless the options place the engine on several machines."""
    if options.get(_REPLICAS_HERE) == 0:
        yield Problem(f"options.{_REPLICAS_HERE}", "must be at least 1: a worker runs an engine itself")
        return
    if options.get("distributed_executor_backend") not in (None, "mp", "uni") or options.get("nnodes", 1) != 1:
        return
    replicas = _REPLICAS_HERE if options.get(_REPLICAS_HERE) is not None else _REPLICAS
    sizes = {name: value for name in (*_SIZES, replicas) if isinstance(value := options.get(name), int) and value > 1}
    needed = 1
    for value in sizes.values():
        needed *= value
    if not sizes or (available := _devices(several_engines=replicas in sizes)) is None or needed <= available:
        return
    name = max(sizes, key=lambda one: sizes[one])
    devices = "NUMA nodes that it may use" if current_platform.is_cpu() else "GPUs"
    yield Problem(
        f"options.{name}",
        f"needs {needed} {devices}, and this machine has {available}"
        + (f"; use at most {available}" if available > 1 else "; omit it")
        + (", and start more workers instead" if name == replicas else ""),
    )


def _devices(*, several_engines: bool) -> int | None:
    """The number of devices that engines can use; None if it is not limited.

    On a CPU, vLLM binds each process of an engine to a NUMA node, unless the binding is set by hand. Each engine gets
    nodes of its own in any case, unless vLLM is told to divide the cores as if there were more nodes.
    """
    if not current_platform.is_cpu():
        return int(current_platform.device_count())
    if os.environ.get("VLLM_CPU_SIM_MULTI_NUMA", "0") != "0":
        return None
    if not several_engines and os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto":
        return None
    try:
        from vllm.utils.cpu_resource_utils import get_visible_memory_node
    except ImportError:  # vLLM before 0.30
        return None
    return len(get_visible_memory_node())
