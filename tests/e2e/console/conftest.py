"""One browser for all tests of the console, and windows of people with different keys."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.console import Visit, create_key, open_browser, visit
from tests.support.stack import Stack


@pytest.fixture(scope="session")
def operator_key(sim_stack: Stack) -> str:
    """A key that sees all projects."""
    return create_key(sim_stack, "operator", "admin", "inference")


@pytest.fixture(scope="session")
def member_key(sim_stack: Stack) -> str:
    """A key of a project of its own."""
    return create_key(sim_stack, "member", "inference")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser, sim_stack: Stack) -> AsyncIterator[Visit]:
    """A window of someone who is not signed in."""
    async with visit(browser, sim_stack.url) as window:
        yield window


@pytest_asyncio.fixture(loop_scope="session")
async def operator(visitor: Visit, operator_key: str) -> Visit:
    """A window of an operator."""
    await visitor.sign_in(operator_key)
    return visitor


@pytest_asyncio.fixture(loop_scope="session")
async def member(visitor: Visit, member_key: str) -> Visit:
    """A window of a member of a project."""
    await visitor.sign_in(member_key)
    return visitor
