"""vLLM's `AsyncLLM`, on a GPU or a CPU. Only this package uses vLLM's names.

Prompts are rendered, sampling parameters created and answers parsed by vLLM's own code, in the same way as in its
OpenAI server: the same request gives the same tokens, and the same tokens give the same answer. Works with vLLM 0.26
to 0.33.
"""

import os

from shared.domain.request import MAX_STOPS

# A forked engine process would inherit a multi-threaded parent. No usage is reported, and vLLM's loggers use the
# worker's handlers.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
# vLLM's own limit (4) is lower than the API's.
os.environ.setdefault("VLLM_MAX_STOP_STRINGS", str(MAX_STOPS))
