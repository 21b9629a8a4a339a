"""The model's folder, and options that vLLM reads only when the engine's process starts: loader, tokenizer, classes.

Each is looked up here as vLLM does it later, and only if the options name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig

from workers.engines.vllm.checks.problem import Problem, reason_of

# Files that describe a model: those of Hugging Face, and of Mistral.
_CONFIGURATIONS = ("config.json", "params.json")
# Options that are import paths, and what they can be besides.
_CLASSES: Mapping[str, Sequence[str]] = {
    "distributed_executor_backend": ("mp", "ray", "uni", "external_launcher"),
    "scheduler_cls": (),
    "worker_cls": ("auto",),
    "worker_extension_cls": ("",),
}


def cannot_load(options: Mapping[str, Any], config: VllmConfig) -> Iterator[Problem]:
    """What vLLM would find out after the start of the engine's process, or after it has read the weights."""
    for names, look_up in _LOOKED_UP.items():
        named = [name for name in names if options.get(name) is not None]
        if not named:
            continue
        try:
            look_up(config)
        except Exception as error:
            reason = reason_of(error) or type(error).__name__
            # A mapping has names of its own, which the error mentions; otherwise the first option decides.
            name = next((name for name in named if name in reason), named[0])
            yield Problem(f"options.{name}", f"{options[name]!r:.100} cannot be used: {reason:.400}")


def no_model(source: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    """A path without a model. Names of the hub are looked up by vLLM."""
    path = Path(source)
    is_path = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if "://" in source or not is_path:
        return
    if source.startswith("~"):
        yield Problem("model", f"{source}: write the whole path; vLLM does not expand ~")
    elif not path.exists():
        yield Problem("model", f"there is no folder {path.absolute()}; name a folder, a hub id or bundled:NAME")
    elif (
        path.is_dir()
        and "hf_config_path" not in options
        and not any((path / name).is_file() for name in _CONFIGURATIONS)
    ):
        yield Problem("model", f"{path.absolute()} has no config.json, so it is no model")


def unknown_classes(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Import paths that lead nowhere, and an executor whose package is missing."""
    for name, values in _CLASSES.items():
        value = options.get(name)
        if not isinstance(value, str) or value in values:
            continue
        module, _, attribute = value.rpartition(".")
        try:
            getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            known = f" or one of {', '.join(values)}" if values else ""
            yield Problem(f"options.{name}", f"{value!r} is not the import path of a class{known}: {error}")
    if options.get("distributed_executor_backend") == "ray" and find_spec("ray") is None:
        yield Problem(
            "options.distributed_executor_backend",
            "ray needs the Python package ray, which is not installed; omit it, and vLLM chooses an executor",
        )


def _loader(config: VllmConfig) -> object:
    from vllm.model_executor.model_loader import get_model_loader

    return get_model_loader(config.load_config)


def _tokenizer(config: VllmConfig) -> object:
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(config.model_config)


_LOOKED_UP: Mapping[tuple[str, ...], Callable[[VllmConfig], object]] = {
    ("load_format", "model_loader_extra_config"): _loader,
    ("tokenizer", "tokenizer_mode", "tokenizer_revision"): _tokenizer,
}
