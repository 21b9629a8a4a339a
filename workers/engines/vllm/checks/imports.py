"""Classes that options name by their import path, and Python packages that values need."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from workers.engines.vllm.checks.problem import Problem, value_at

# Options that are import paths, what they can be besides, and the class that they must extend.
_CLASSES: Mapping[str, tuple[Sequence[str], str]] = {
    "distributed_executor_backend": (
        ("mp", "ray", "uni", "external_launcher"),
        "vllm.v1.executor.abstract.Executor",
    ),
    "scheduler_cls": ((), "vllm.v1.core.sched.interface.SchedulerInterface"),
    "worker_cls": (("auto",), "vllm.v1.worker.worker_base.WorkerBase"),
    "worker_extension_cls": (("",), "builtins.object"),
}
# Options with import paths in the form `module:name`, and the class that each must extend.
_PATHS: Mapping[str, str] = {
    "logits_processors": "vllm.v1.sample.logits_processor.LogitsProcessor",
    "model_class_overrides": "torch.nn.Module",
}
# The Python package that a value needs, or the packages of which one suffices. vLLM imports most of them only when the
# engine starts.
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "distributed_executor_backend": {"ray": "ray"},
    "data_parallel_backend": {"ray": "ray"},
    "load_format": {
        "tensorizer": "tensorizer",
        "runai_streamer": "runai_model_streamer",
        "runai_streamer_sharded": "runai_model_streamer",
        "fastsafetensors": "fastsafetensors",
        "instanttensor": "instanttensor",
        "modelexpress": "modelexpress",
    },
    "safetensors_load_strategy": {"torchao": "torchao"},
    "prefix_caching_hash_algo": {"sha256_cbor": "cbor2", "xxhash": "xxhash", "xxhash_cbor": "xxhash"},
    "kv_offloading_backend": {"lmcache": "lmcache"},
    "structured_outputs_config.backend": {"outlines": "outlines_core", "lm-format-enforcer": "lmformatenforcer"},
    "speculative_config.method": {"suffix": "arctic_inference"},
    "kv_transfer_config.kv_connector": {
        **dict.fromkeys(("NixlConnector", "NixlPullConnector", "NixlPushConnector"), "nixl or rixl"),
        **dict.fromkeys(("LMCacheConnectorV1", "LMCacheMPConnector"), "lmcache"),
    },
}


def unknown_classes(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Import paths that lead nowhere, or to something else than a class of the right kind."""
    for name, (values, base) in _CLASSES.items():
        value = options.get(name)
        if not isinstance(value, str) or value in values:
            continue
        module, _, attribute = value.rpartition(".")
        if (problem := not_a_class(module, attribute, base)) is not None:
            known = f" or one of {', '.join(values)}" if any(values) else ""
            yield Problem(f"options.{name}", f"{value!r} is not the import path of a class{known}: {problem}")
    for name, base in _PATHS.items():
        named = options.get(name)
        paths = list(named.values()) if isinstance(named, dict) else named if isinstance(named, list) else []
        for path in paths:
            if not isinstance(path, str):
                continue
            module, _, attribute = path.partition(":")
            problem = not_a_class(module, attribute, base) if module and attribute else "write module:Class"
            if problem is not None:
                yield Problem(f"options.{name}", f"{path!r} is not the import path of a class: {problem}")


def missing_packages(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Values that need a Python package that is not installed."""
    for place, packages in _PACKAGES.items():
        value = value_at(options, place)
        if place.endswith(".kv_connector") and value_at(options, f"{place}_module_path") is not None:
            continue  # the operator's own class
        package = packages.get(value) if isinstance(value, str) else None
        if package is not None and not any(find_spec(one) for one in package.split(" or ")):
            yield Problem(
                f"options.{place}",
                f"{value} needs the Python package {package}, which is not installed; install it, or omit the option",
            )


def not_a_class(module: str, attribute: str, base: str) -> str | None:
    """Why `attribute` of a module is not a class that extends `base`, an import path; None if it is one."""
    try:
        found: Any = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as error:  # the module may raise any when it is imported
        return str(error) or type(error).__name__
    if not inspect.isclass(found):
        return f"it is a {type(found).__name__}"
    extended, _, name = base.rpartition(".")
    if not issubclass(found, getattr(import_module(extended), name)):
        return f"it does not extend {base}"
    return None
