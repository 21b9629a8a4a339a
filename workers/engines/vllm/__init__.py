"""vLLM's `AsyncLLM`, on a GPU or a CPU. vLLM's names stand in this package alone.

Prompts are rendered, sampling parameters made and answers parsed by vLLM's own code, as its OpenAI server does, so
that the same request gives the same tokens, and the same tokens the same answer. Works with vLLM 0.26 to 0.33.
"""

import os

from shared.domain.request import MAX_STOPS

# A forked engine process would inherit a threaded parent; nothing is reported to anybody; and its loggers use ours.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
# What the API takes, the engine has to take: vLLM's own limit is 4.
os.environ.setdefault("VLLM_MAX_STOP_STRINGS", str(MAX_STOPS))
