"""The commands in the documentation have valid arguments."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from api.cache import __main__ as cache
from api.console import __main__ as console
from api.keys import __main__ as keys
from api.request_log import __main__ as request_log
from api.usage import __main__ as usage
from tests.support.stack import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMANDS = {
    "api.keys": keys,
    "api.cache": cache,
    "api.console": console,
    "api.request_log": request_log,
    "api.usage": usage,
}


def documented() -> Iterator[tuple[str, str]]:
    """The commands with arguments, without those that only name an action."""
    for page in PAGES:
        for module, arguments in re.findall(
            r"python -m (api\.(?:keys|cache|console|request_log|usage)) ([^`\n#|)]+)", page.read_text()
        ):
            yield module, arguments.strip()


@pytest.mark.parametrize(("module", "arguments"), sorted({one for one in documented() if " " in one[1]}))
def test_a_documented_command_is_valid(monkeypatch: pytest.MonkeyPatch, module: str, arguments: str) -> None:
    def run(action: Coroutine[Any, Any, int]) -> int:
        action.close()
        return 0

    monkeypatch.setattr(asyncio, "run", run)
    assert COMMANDS[module].main(shlex.split(arguments)) == 0
