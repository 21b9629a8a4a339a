"""A logits processor for vLLM that fails in a step, as a broken kernel would."""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

CRASH = "<<crash>>"


class Crash(LogitsProcessor):  # type: ignore[misc]
    """Fails for a request with `CRASH` among its stop strings."""

    def __init__(self, *_: Any) -> None:
        self._crashes = False

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        for _, params, *_ in batch_update.added if batch_update else ():
            self._crashes = self._crashes or CRASH in (params.stop or ())

    def apply(self, logits: Any) -> Any:
        if self._crashes:
            raise RuntimeError("crash requested")
        return logits
