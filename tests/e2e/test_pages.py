"""The pages in a browser, behind a proxy that adds a path prefix. The browser can reach no other host."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.browser import needs_chromium, render
from tests.support.stack import Stack

pytestmark = needs_chromium

PREFIX = "/llm"


@dataclass
class Proxy:
    """A proxy that removes the prefix, which is unknown to the API."""

    url: str = ""
    answered: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def proxy(sim_stack: Stack) -> Iterator[Proxy]:
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = 404, {}, b""
            if self.path.startswith(f"{PREFIX}/"):
                response = httpx.get(f"{sim_stack.url}{self.path.removeprefix(PREFIX)}")
                status, headers, body = response.status_code, dict(response.headers), response.content
            proxy.answered[self.path] = status
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        proxy.url = f"http://127.0.0.1:{server.server_port}{PREFIX}"
        yield proxy
        server.shutdown()
        thread.join()


def test_docs_show_every_operation(sim_stack: Stack, proxy: Proxy, tmp_path: Path) -> None:
    paths = httpx.get(f"{sim_stack.url}/openapi.json", timeout=60).json()["paths"]
    page = render(f"{proxy.url}/docs", tmp_path)
    assert page.console == []
    shown = re.findall(r'<div class="opblock opblock-[a-z]+" id="[^"]+">.*?data-path="([^"]+)"', page.dom)
    assert sorted(shown) == sorted(path for path, operations in paths.items() for _ in operations)
    assert f'<option value="{proxy.url}">' in page.dom, '"Try it out" keeps the prefix'
    proxy.answered.pop(f"{PREFIX}/static/favicon.svg", None)  # a headless browser may not load it
    files = ("docs", "static/swagger-ui.css", "static/swagger-ui-bundle.js", "openapi.json")
    assert proxy.answered == {f"{PREFIX}/{file}": 200 for file in files}


def test_landing_page_shows_address_model_and_state(proxy: Proxy, tmp_path: Path) -> None:
    page = render(f"{proxy.url}/", tmp_path)
    assert page.console == []
    assert f'curl -N <span class="address">{proxy.url}</span>/v1/chat/completions' in page.dom
    assert '"model": "<span id="model">sim</span>"' in page.dom
    assert "Not ready: model orphan" in page.dom
    assert proxy.answered == {f"{PREFIX}/": 200, f"{PREFIX}/static/favicon.svg": 200, f"{PREFIX}/readyz": 503}
