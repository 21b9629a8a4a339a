"""Runs work that grows with a request or an answer outside of the event loop.

The event loop must not run anything for more than 20 ms in one step. Small inputs are processed inline, which is
faster; large ones in a thread. A thread does not help if C code holds the interpreter's lock for long, so functions
that run here work in small pieces (see `shared.runtime.chunked_json`).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Parsing and validating this many bytes takes about a millisecond.
INLINE_BYTES = 32 * 1024

# One thread: with several, the event loop would compete with all of them for the interpreter's lock.
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="offload")


async def off_loop(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function: inline if its input has at most `INLINE_BYTES` bytes (`size`), otherwise in a thread."""
    if size <= INLINE_BYTES:
        return function(*args, **kwargs)
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREAD, contextvars.copy_context().run, call)
