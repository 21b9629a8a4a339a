"""The common part of all systems under load: address, processes and chat plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import randrange
from typing import Any

from benchmarks.load.plan import NUMBER, Plan
from benchmarks.processes import Processes

CHAT = "/v1/chat/completions"
# The number comes first, so that no prompt hits a prefix cache.
PROMPT = f"{NUMBER}: write a long and detailed story about a water mill."


@dataclass(frozen=True, slots=True)
class System:
    """A running system with an OpenAI chat endpoint."""

    name: str
    port: int
    processes: Processes
    headers: dict[str, str] = field(default_factory=dict)
    # Whether it can stream. If not, it returns the whole response at once.
    streams: bool = True

    def chat(self, model: str, tokens: int, *, ignore_eos: bool = True, **plan: Any) -> Plan:
        """Return a plan of chat completions with a fixed number of tokens each."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "temperature": 0,
        }
        if ignore_eos:
            body["ignore_eos"] = True
        if self.streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        first = randrange(10**7)
        return Plan(port=self.port, path=CHAT, body=body, headers=self.headers, first_number=first, **plan)
