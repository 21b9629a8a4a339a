"""Makes LoRA adapters of the bundled model without training: `python -m tests.support.adapters FOLDER [SEED]`.

The weights are random, of a size that changes greedy answers but leaves them text. Those of a seed are always the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from shared.config.bundled_model import bundled_model_path

BUNDLED = "SmolLM2-135M-Instruct"
RANK = 4
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
# The size of the change, relative to the weights that it is added to.
STRENGTH = 0.3


def make_adapter(folder: Path, seed: int, *, rank: int = RANK, strength: float = STRENGTH, **config: Any) -> Path:
    """Write an adapter of this seed to a folder, as PEFT would save it. `config` adds to its adapter_config.json."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    tensors = {}
    with safe_open(bundled_model_path(BUNDLED) / "model.safetensors", framework="pt") as base:
        for name in sorted(base.keys()):
            module = name.removesuffix(".weight")
            if not module.endswith(MODULES):
                continue
            weight = base.get_tensor(name).float()
            a = torch.randn(rank, weight.shape[1], generator=random)
            b = torch.randn(weight.shape[0], rank, generator=random)
            b *= strength * weight.norm() / (b @ a).norm()
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": f"HuggingFaceTB/{BUNDLED}",
        "r": rank,
        "lora_alpha": rank,  # a factor of 1
        "target_modules": [module.rpartition(".")[2] for module in MODULES],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))
    return folder


if __name__ == "__main__":
    print(make_adapter(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
