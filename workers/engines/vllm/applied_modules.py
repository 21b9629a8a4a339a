"""Tells which weights of a LoRA adapter vLLM applies.

vLLM loads an adapter whose weights belong to no layer of the model, for example because the layers have other names in
the class of the model that it was trained with, and then answers as the base does. Only the process that runs the model
knows its layers. vLLM accepts a class by import path whose methods its worker gets (`worker_extension_cls`).
"""

from __future__ import annotations

from typing import Any

# The method of the worker, by the name with which it is called.
METHOD = "applied_modules"


class AppliedModules:
    """What vLLM's worker gets."""

    model_runner: Any

    def applied_modules(self, adapter: int) -> tuple[list[str], list[str]] | None:
        """The modules that a loaded adapter has weights for: those of this worker's model, and the others.

        None if vLLM keeps its adapters in another way than the known versions.
        """
        manager: Any = getattr(getattr(self.model_runner, "lora_manager", None), "_adapter_manager", None)
        if not isinstance(getattr(manager, "modules", None), dict):
            return None
        found = manager.get_adapter(adapter)
        if found is None:
            return None
        applied, others = list[str](), list[str]()
        for name in found.loras:
            (applied if name in manager.modules else others).append(name)
        return applied, others


NAME = f"{AppliedModules.__module__}.{AppliedModules.__qualname__}"
