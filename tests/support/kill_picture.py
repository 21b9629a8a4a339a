"""`python -m tests.support.kill_picture [FILE]`: a picture of a stream that survives a kill, for the README.

It runs the packaged model on two workers, submits a prompt with the command line, ends the worker that generates the
answer with `kill -9`, and draws what the command printed, and when. The same command was run undisturbed before; if
the two answers differ, there is no picture.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tests.support.demo_servers import demo_servers
from tests.support.stack import KEY, REPOSITORY, Stack, write_models
from tests.support.waiting import eventually

PICTURE = REPOSITORY / "docs" / "images" / "stream-survives-kill.svg"
PROMPT = "Tell me a story about a water mill and a small river."
COMMAND = ["submit", PROMPT, "--max-tokens", "100", "--temperature", "0"]
# Characters of the answer after which the worker is killed.
KILL_AFTER = 180
MODEL = {
    "name": "smollm2",
    "engine": "vllm",
    "model": "bundled:SmolLM2-135M-Instruct",
    "options": {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 1 << 28,
    },
}


@dataclass(frozen=True)
class Recording:
    """What the command printed. Times are in seconds since its start."""

    deltas: list[tuple[float, str]]
    killed_s: float
    resumed_s: float
    ended_s: float
    tokens_before: int
    tokens: int

    @property
    def before(self) -> str:
        return "".join(text for at, text in self.deltas if at < self.resumed_s)

    @property
    def after(self) -> str:
        return "".join(text for at, text in self.deltas if at >= self.resumed_s)


@contextmanager
def two_workers() -> Iterator[Stack]:
    """An API and two workers of the model, on servers of their own."""
    with demo_servers() as (url, redis_url, folder):
        stack = Stack(url, redis_url, write_models(folder / "models.yaml", [MODEL]), folder)
        try:
            stack.start_api()
            stack.start_workers(["smollm2", "smollm2"], within_s=600)
            yield stack
        finally:
            stack.stop()


async def run_command(stack: Stack, deltas: list[tuple[float, str]]) -> None:
    """Run `headrace submit`; adds what it prints, with the time, to `deltas`."""
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *COMMAND),
        cwd=REPOSITORY,
        env={**os.environ, "HEADRACE_URL": stack.url, "HEADRACE_API_KEY": KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    while printed := await process.stdout.read(4096):
        deltas.append((time.monotonic() - begun, printed.decode()))
    errors = (await process.stderr.read()).decode()
    assert await process.wait() == 0, errors


async def record(stack: Stack) -> Recording:
    """Run the command undisturbed, then again with a kill; fails if the answers differ."""
    undisturbed: list[tuple[float, str]] = []
    # Twice at the same time: each worker computes its first request more slowly than later ones.
    await asyncio.gather(run_command(stack, undisturbed), run_command(stack, []))
    deltas: list[tuple[float, str]] = []
    begun = time.monotonic()
    running = asyncio.create_task(run_command(stack, deltas))

    async def is_under_way() -> bool:
        return sum(len(text) for _, text in deltas) >= KILL_AFTER

    await eventually(is_under_way, "the answer is under way", within_s=120)
    async with stack.client() as client:
        newest = (await client.get("/v1/jobs", params={"limit": 1})).json()["data"][0]["id"]
        job = (await client.get(f"/v1/jobs/{newest}")).json()
        kill_worker(stack, job["attempts"][0]["worker"])
        killed_s = time.monotonic() - begun
        await running
        job = (await client.get(f"/v1/jobs/{newest}")).json()
    assert "".join(text for _, text in deltas) == "".join(text for _, text in undisturbed), "the answers differ"
    return recording_of(job, deltas, killed_s)


def kill_worker(stack: Stack, worker: str) -> None:
    """`kill -9` the process of a worker, whose id is MODEL-PID-RANDOM@HOST."""
    pid = int(worker.partition("@")[0].rsplit("-", 2)[1])
    (name,) = [name for name, process in stack.processes.items() if process.pid == pid]
    stack.kill(name)


def recording_of(job: dict[str, Any], deltas: list[tuple[float, str]], killed_s: float) -> Recording:
    """What is drawn, from what the command printed and from the job after its end."""
    lost, continued = job["attempts"]
    assert (lost["outcome"], continued["outcome"]) == ("worker_lost", job["status"]), job["attempts"]
    resumed_s = next(at for at, _ in deltas if at > killed_s + 1)
    tokens = job["usage"]["completion_tokens"]
    return Recording(deltas, killed_s, resumed_s, deltas[-1][0], lost["tokens"], tokens)


WIDTH, LEFT, RIGHT = 960, 96, 936
_COLUMNS = 112
_STYLE = """
  text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #e6e9ef; }
  .quiet { fill: #8b95a7; } .first { fill: #7fb0ff; } .second { fill: #58d3a8; } .lost { fill: #ff8a7a; }
"""


def picture(recording: Recording) -> str:
    """The recording as an SVG file: the answer in the colours of its workers, and below when its parts arrived."""
    answer = _lines_of_answer(recording)
    top = 86 + 20 * len(answer)
    height = top + 148
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{escape(_summary(recording))}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#0f141d"/>',
        '<circle cx="22" cy="20" r="5" fill="#ff5f57"/><circle cx="40" cy="20" r="5" fill="#febc2e"/>'
        '<circle cx="58" cy="20" r="5" fill="#28c840"/>',
        _text(24, 56, [("quiet", "$ "), ("", f"headrace {shlex.join(COMMAND)}")]),
        *(_text(24, 82 + 20 * number, line) for number, line in enumerate(answer)),
        *_timeline(recording, top),
        _text(24, height - 20, [("quiet", _summary(recording))]),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _summary(recording: Recording) -> str:
    return (
        f"{recording.tokens_before} tokens from worker A, {recording.tokens - recording.tokens_before} from worker B,"
        " in one stream: the same text as in a run without the kill."
    )


def _lines_of_answer(recording: Recording) -> list[list[tuple[str, str]]]:
    """The wrapped answer: lines of parts, each with its class. A mark shows where the worker was killed."""
    mark = "\N{HEAVY BALLOT X}"
    whole = " ".join(f"{recording.before}{mark}{recording.after}".split())
    lines: list[list[tuple[str, str]]] = []
    style = "first"
    for line in textwrap.wrap(whole, _COLUMNS):
        before, found, after = line.partition(mark)
        lines.append([("first", before), ("lost", mark), ("second", after)] if found else [(style, line)])
        style = "second" if found else style
    return lines


def _timeline(recording: Recording, top: int) -> Iterator[str]:
    """Two lanes, one for each worker, with a stroke for each piece of text, and an axis of seconds."""
    scale = (RIGHT - LEFT) / (recording.ended_s * 1.02)

    def x(seconds: float) -> str:
        return f"{LEFT + seconds * scale:.1f}"

    def width(begin: float, end: float) -> str:
        return f"{(end - begin) * scale:.1f}"

    first = recording.deltas[0][0]
    a, b = top + 8, top + 48
    yield _text(24, a + 18, [("first", "worker A")]) + _text(24, b + 18, [("second", "worker B")])
    bars = (
        (a, first, recording.killed_s, "#16264a"),
        (a, recording.killed_s, recording.resumed_s, "#3a1a1c"),
        (b, recording.resumed_s, recording.ended_s, "#10352c"),
    )
    for y, begin, end, colour in bars:
        yield f'<rect x="{x(begin)}" y="{y}" width="{width(begin, end)}" height="28" rx="3" fill="{colour}"/>'
    for at, _ in recording.deltas:
        y, colour = (a, "#7fb0ff") if at < recording.resumed_s else (b, "#58d3a8")
        yield f'<rect x="{x(at)}" y="{y + 6}" width="1.5" height="16" fill="{colour}"/>'
    pause = recording.resumed_s - recording.killed_s
    lost, continued = f"kill -9 at {recording.killed_s:.1f} s", f"continues {pause:.1f} s later"
    yield f'<text class="lost" x="{float(x(recording.killed_s)) + 8:.1f}" y="{a + 18}">{lost}</text>'
    end = float(x(recording.resumed_s)) - 8
    yield f'<text class="second" x="{end:.1f}" y="{b + 18}" text-anchor="end">{continued}</text>'
    step = 1 if recording.ended_s < 14 else 2
    for second in range(0, int(recording.ended_s) + 1, step):
        yield f'<text class="quiet" x="{x(second)}" y="{b + 52}" text-anchor="middle">{second} s</text>'


def _text(x: int, y: int, parts: list[tuple[str, str]]) -> str:
    spans = "".join(f'<tspan class="{style}">{escape(text)}</tspan>' for style, text in parts if text)
    return f'<text x="{x}" y="{y}" xml:space="preserve">{spans}</text>'


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.kill_picture", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    with two_workers() as stack:
        arguments.file.write_text(picture(asyncio.run(record(stack))))
    print(arguments.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
