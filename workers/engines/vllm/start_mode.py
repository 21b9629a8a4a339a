"""How a model starts: as it is (`start: fast`), or compiled first (`start: compiled`)."""

from __future__ import annotations

import os
from typing import Any

from shared.config.bundled_model import cache_folder
from shared.config.models.vllm import VllmModel


def start_options(model: VllmModel) -> dict[str, Any]:
    """Engine options of the model's `start`; empty if it has none. vLLM compiles unless it is told otherwise.

    For compiled models it also sets the environment variables that name the folders of compiled code, unless they are
    set. The engine's process inherits them. By default, compiled code is in the home folder, or among temporary files
    where vLLM leaves the choice to torch; a container loses both.
    """
    if model.start is None:
        return {}
    if model.start == "fast":
        return {"enforce_eager": True}
    folder = cache_folder() / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torchinductor"))
    os.environ.setdefault("VLLM_CACHE_ROOT", str(folder / "vllm"))
    return {"enforce_eager": False}
