"""The part of a request from which its complexity is determined: bounded, whatever the request's length."""

from __future__ import annotations

from dataclasses import dataclass

from shared.domain.content import TextPart
from shared.domain.request import GenerateRequest, Message

# Characters of the task that are read: the first and the last ones, where instructions are.
TASK_CHARACTERS = 1200
# Messages that are read, from the conversation's end, and parts at each end of a message.
_MESSAGES = 64
_PARTS = 16
# Characters of a prompt per token, if it consists of token ids.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class RequestText:
    """`task`: the user's newest message or the prompt, at most `TASK_CHARACTERS` characters. `task_size` and `size`:
    the characters of the whole task, and of the prompt with the latest messages."""

    task: str
    task_size: int
    size: int

    @classmethod
    def of(cls, request: GenerateRequest) -> RequestText:
        """Read a request. The task is the newest message of the user, or the prompt."""
        if request.messages is None:
            prompt = request.prompt
            if isinstance(prompt, list):
                size = _CHARACTERS_PER_TOKEN * len(prompt)
                return cls("", size, size)
            return cls(_clip([prompt or ""]), len(prompt or ""), len(prompt or ""))
        latest = request.messages[-_MESSAGES:]
        texts = [_texts(message) for message in latest]
        sizes = [sum(map(len, item)) for item in texts]
        position = next((at for at in reversed(range(len(latest))) if latest[at].role == "user"), len(latest) - 1)
        if position < 0:
            return cls("", 0, 0)
        return cls(_clip(texts[position]), sizes[position], sum(sizes))


def _texts(message: Message) -> list[str]:
    content = message.content
    if isinstance(content, list):
        parts = content if len(content) <= 2 * _PARTS else [*content[:_PARTS], *content[-_PARTS:]]
        return [part.text for part in parts if isinstance(part, TextPart)]
    return [] if content is None else [content]


def _clip(texts: list[str]) -> str:
    """The texts, joined by line breaks; of long ones the beginning and the end."""
    half = TASK_CHARACTERS // 2
    if sum(map(len, texts)) + len(texts) <= TASK_CHARACTERS:
        return "\n".join(texts)
    head = "\n".join(text[:half] for text in texts)[:half]
    tail = "\n".join(text[-half:] for text in texts)[-(half - 1) :]
    return f"{head}\n{tail}"
