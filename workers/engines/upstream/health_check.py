"""Asks the endpoints of an upstream for their health, if models.yaml names a path for it."""

from __future__ import annotations

import asyncio

import aiohttp

from shared.config.models.upstream import UpstreamOptions
from workers.engines.upstream.endpoints import Endpoint, Endpoints
from workers.engines.upstream.errors import FORBIDDEN, KEY_REFUSED

TIMEOUT_S = 5.0


def start_health_checks(
    endpoints: Endpoints, session: aiohttp.ClientSession, options: UpstreamOptions
) -> list[asyncio.Task[None]]:
    """Check each endpoint periodically, until the returned tasks are cancelled."""
    if options.health_path is None:
        return []
    path = options.health_path.lstrip("/")
    return [
        asyncio.create_task(
            _check_periodically(endpoint, endpoints, session, path, options.health_interval_s),
            name=f"health-check-{endpoint.name}",
        )
        for endpoint in endpoints
    ]


async def _check_periodically(
    endpoint: Endpoint, endpoints: Endpoints, session: aiohttp.ClientSession, path: str, interval_s: float
) -> None:
    while True:
        await _check(endpoint, endpoints, session, path)
        await asyncio.sleep(interval_s)


async def _check(endpoint: Endpoint, endpoints: Endpoints, session: aiohttp.ClientSession, path: str) -> None:
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            session.get(
                f"{endpoint.base_url}/{path}", headers=endpoint.headers, proxy=endpoint.proxy, allow_redirects=False
            ) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        endpoints.failed(endpoint, f"the health check failed ({type(error).__name__})")
        return
    if 200 <= status < 300:
        if not endpoint.health.key_failed:  # servers check no key there
            endpoints.succeeded(endpoint)
    else:
        endpoints.failed(
            endpoint, f"the health check answered HTTP {status}", of_key=status in (KEY_REFUSED, FORBIDDEN)
        )
