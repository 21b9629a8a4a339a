"""The model and engine options shared by all systems with a vLLM engine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import Options
from launcher.settings import REPOSITORY
from shared.config.bundled_model import bundled_model_path

BUNDLED = "SmolLM2-135M-Instruct"
GIB = 2**30
NAME = "bench"
# No downloads and no usage reports.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class VllmModel:
    """A model folder and vLLM's `AsyncEngineArgs` by name."""

    folder: Path
    options: dict[str, Any]

    @property
    def entry(self) -> dict[str, Any]:
        """The entry for models.yaml."""
        return {"name": NAME, "engine": "vllm", "model": str(self.folder), "options": self.options}

    @property
    def flags(self) -> list[str]:
        """The command-line flags for vLLM's own server."""
        words = []
        for name, value in self.options.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return words


def vllm_model(options: Options) -> VllmModel:
    """Return the model and options for the command line. The KV cache size is fixed, since engines share a GPU."""
    cuda = options.device == "cuda"
    return VllmModel(
        folder=(options.model or _bundled()).resolve(),
        options={
            "dtype": options.dtype or ("auto" if cuda else "float32"),
            "enforce_eager": not (cuda or options.compiled),
            "load_format": options.load_format,
            "max_model_len": 2048,
            "max_num_seqs": 256 if cuda else 64,
            # Explicit, because vLLM's default differs between its server and its library.
            "max_num_batched_tokens": 8192 if cuda else 2048,
            "kv_cache_memory_bytes": (8 if cuda else 1) * GIB,
            "enable_prefix_caching": True,
        },
    )


def _bundled() -> Path:
    subprocess.run([sys.executable, "-m", "launcher.bundled_model", BUNDLED], cwd=REPOSITORY, check=True)
    return bundled_model_path(BUNDLED)
