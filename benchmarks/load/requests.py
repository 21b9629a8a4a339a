"""Encodes a plan's requests in advance; each gets its number when it is sent."""

from __future__ import annotations

from itertools import count

import orjson

from benchmarks.load.plan import ID, NUMBER, Plan

# The number has a fixed width, so that the content length is fixed too.
WIDTH = 8


def request(port: int, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> bytes:
    """Encode an HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *(f"{key}: {headers[key]}" for key in headers)]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Requests:
    """An endless sequence of a plan's requests."""

    def __init__(self, plan: Plan) -> None:
        body = None
        if plan.body is not None:
            body = orjson.dumps(plan.body).replace(NUMBER.encode(), b"0" * WIDTH)
        paths = [plan.path.replace(ID, job_id) for job_id in plan.ids] or [plan.path]
        encoded = [request(plan.port, plan.method, path, plan.headers, body) for path in paths]
        self._parts = [self._split_at_number(plan, request_bytes) for request_bytes in encoded]
        self._numbers = count(plan.first_number)

    def next(self) -> bytes:
        number = next(self._numbers)
        before, after = self._parts[number % len(self._parts)]
        return before if after is None else b"%s%08d%s" % (before, number, after)

    @staticmethod
    def _split_at_number(plan: Plan, encoded: bytes) -> tuple[bytes, bytes | None]:
        if plan.body is None or NUMBER.encode() not in orjson.dumps(plan.body):
            return encoded, None
        before, _, after = encoded.rpartition(b"0" * WIDTH)
        return before, after
