"""The modules that `tests.support.vllm_forks` imports before it forks."""

import os

# The engines of tests run eagerly, for which a worker sets this before the engine's process imports torch.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

# First, because it sets variables that vLLM reads when it is imported.
import workers.engines.vllm  # isort: skip
import vllm.v1.engine.core
import vllm.v1.engine.llm_engine

import tests.support.loaded
import tests.support.vllm_forks
import workers.engines.factory
import workers.engines.vllm.engine
import workers.engines.vllm.executor
import workers.engines.vllm.int4_kernel
import workers.engines.vllm.plan
import workers.engines.vllm.report
import workers.engines.vllm.scheduler
from tests.support.fork_server import freeze

__all__ = ["tests", "vllm", "workers"]

freeze()
