"""The examples of docs/start.md work when pasted."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.support.stack import KEY, REPOSITORY, Stack

PAGE = (REPOSITORY / "docs" / "start.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
POLL, STREAM, OPENAI, ANTHROPIC = range(4)


async def run_block(stack: Stack, folder: Path, number: int) -> str:
    """Run a block as pasted, with the address of this stack. Returns its output."""
    language, code = BLOCKS[number]
    code = code.replace("http://127.0.0.1:8000", stack.url)
    program = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=folder,
        env={**stack.environment, "HEADRACE_API_KEY": KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, errors.decode()
    return output.decode()


def test_every_block_has_a_test() -> None:
    assert [language for language, _ in BLOCKS] == ["bash", "bash", "python", "python"]


async def test_submit_and_poll(vllm_stack: Stack, tmp_path: Path) -> None:
    printed = await run_block(vllm_stack, tmp_path, POLL)
    assert '"object": "job"' in printed
    assert re.search(r'"status": "(completed|incomplete)"', printed)


async def test_stream_and_resume(vllm_stack: Stack, tmp_path: Path) -> None:
    printed = await run_block(vllm_stack, tmp_path, STREAM)
    assert printed.count("event: job.started") == 1, "the resumed stream starts after its cursor"
    assert printed.count("event: job.incomplete") + printed.count("event: job.completed") == 2


@pytest.mark.parametrize("block", [OPENAI, ANTHROPIC])
async def test_an_sdk(vllm_stack: Stack, tmp_path: Path, block: int) -> None:
    assert len((await run_block(vllm_stack, tmp_path, block)).split()) > 5
