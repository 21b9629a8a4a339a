"""One TLS context for all HTTP clients of a test process.

Each `httpx.Client`, and so each `httpx.get`, reads the certificates of all authorities: 25 to 50 ms of CPU time. Tests
create thousands of clients, nearly all of them for http://127.0.0.1.
"""

from __future__ import annotations

import functools
import os
import ssl
from typing import Any

import httpx._transports.default
import httpx2._transports.default  # of OpenAI's client

Environment = tuple[str | None, ...]


def share_tls_context() -> None:
    """Let httpx's clients of this process that verify servers by default share a context."""
    for module in (httpx._transports.default, httpx2._transports.default):
        _share(vars(module))


def _share(names: dict[str, Any]) -> None:
    create = names["create_ssl_context"]

    @functools.cache
    def default(trust_env: bool, _: Environment) -> ssl.SSLContext:
        context: ssl.SSLContext = create(trust_env=trust_env)
        return context

    def create_or_share(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
        if verify is True and cert is None:
            return default(trust_env, (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")))
        return create(verify=verify, cert=cert, trust_env=trust_env)

    names["create_ssl_context"] = create_or_share
