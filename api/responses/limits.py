"""Limits the conversations that `previous_response_id` continues.

Each response stores its whole conversation, so without a limit a chain of small requests would make ever larger ones,
beyond the limit of a single request's body.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest


@dataclass(frozen=True, slots=True)
class ConversationLimits:
    """The maximum size of a continued conversation."""

    max_bytes: int
    max_messages: int

    def check(self, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` if the conversation of a request exceeds a limit."""
        messages = len(request.messages or ())
        if messages > self.max_messages:
            raise self._too_large(f"{messages} messages; the maximum is {self.max_messages}")
        if request.size > self.max_bytes:
            raise self._too_large(f"{request.size} bytes; the maximum is {self.max_bytes}")

    @staticmethod
    def _too_large(what: str) -> InvalidRequest:
        return InvalidRequest(
            f"previous_response_id: with the earlier turns, the conversation has {what}. Start a new conversation"
            " without previous_response_id, and send a summary or the turns that still matter as input.",
            param="previous_response_id",
        )
