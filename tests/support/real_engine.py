"""The model of tests that use vLLM's engine in their own process. One engine serves all of them."""

from __future__ import annotations

from shared.config.bundled_model import bundled_model_path
from shared.config.models.vllm import ChatSettings, VllmModel

CONTEXT = 256
SMOLLM2 = VllmModel(
    name="smollm2",
    engine="vllm",
    model=str(bundled_model_path("SmolLM2-135M-Instruct")),
    options={
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": CONTEXT,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 1 << 28,
    },
    chat=ChatSettings(tool_call_parser="hermes"),
)
