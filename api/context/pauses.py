"""Pauses of summaries: after a failure, requests do without them for a while instead of waiting for the next one."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass

# The most pauses that are remembered; the oldest are forgotten first.
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, by the digest of its first message, and the model that summarizes it for a project."""

    project_id: int
    model: str
    sha256: bytes

    @property
    def summarizer(self) -> Hashable:
        """The model and the project: what one project's conversations cause does not concern another."""
        return self.project_id, self.model


class Pauses:
    """The conversations that are paused, and the models: those that have failed for two conversations in succession."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: the length of a pause."""
        self._seconds = seconds
        # By conversation or model, the end by the monotonic clock, and the reason. The oldest is first.
        self._paused: dict[Hashable, tuple[float, str]] = {}
        # By model, the conversation for which it has failed last.
        self._failed: dict[Hashable, Conversation] = {}

    def reason(self, conversation: Conversation) -> str | None:
        """Why no summary is to be requested for a conversation; None if one may be."""
        now = time.monotonic()
        for key in (conversation, conversation.summarizer):
            until, reason = self._paused.get(key, (0.0, ""))
            if now < until:
                return reason
        return None

    def start(self, conversation: Conversation, reason: str, *, of_model: bool = False) -> None:
        """Pause a conversation. `of_model`: the model has failed, which may concern other conversations too."""
        self._add(conversation, reason)
        if of_model:
            if self._failed.get(conversation.summarizer, conversation) != conversation:
                self._add(conversation.summarizer, reason)
            self._failed[conversation.summarizer] = conversation

    def end(self, conversation: Conversation) -> None:
        """End the pauses of a conversation and of its model, which has written a summary."""
        for key in (conversation, conversation.summarizer):
            self._paused.pop(key, None)
        self._failed.pop(conversation.summarizer, None)

    def _add(self, key: Hashable, reason: str) -> None:
        self._paused.pop(key, None)
        self._paused[key] = (time.monotonic() + self._seconds, reason)
        if len(self._paused) > MOST:
            del self._paused[next(iter(self._paused))]
