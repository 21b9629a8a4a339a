"""The key of an answer in the response cache: a digest of everything that the answer depends on."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Literal

import orjson

from shared.domain.request import GenerateRequest

# Part of each key. Increase it if the same key would otherwise identify a different answer.
VERSION = 1
# Members without effect on the answer: the place in the queue, and how an upstream or engine caches the prompt.
WITHOUT_EFFECT = frozenset({"priority", "cache_breakpoints", "prompt_cache_key", "cache_salt", "adapter"})


@dataclass(frozen=True, slots=True)
class Partition:
    """The scope of stored answers: a project and, within it, possibly a key or an end user."""

    project_id: int
    scope: Literal["project", "key", "user"] = "project"
    member: int | str | None = None


def cache_key(secret: bytes, partition: Partition, model: str, revision: str, request: GenerateRequest) -> bytes:
    """The key of the answer to a request: 32 bytes. `revision` is that of the model's entry.

    Without the secret, a key cannot be used to check whether a request was made. The texts of the client's own objects,
    such as JSON Schemas, count as they are: the order of their members may change the answer.
    """
    identity = [VERSION, partition.project_id, partition.scope, partition.member, model, revision]
    content = request.model_dump_json(exclude=set(WITHOUT_EFFECT), exclude_none=True, exclude_defaults=True)
    # The first list ends where the request begins, so no two pairs result in the same text.
    return hmac.digest(secret, orjson.dumps(identity) + content.encode("utf-8", "surrogatepass"), "sha256")
