"""The request of a job as the body of `POST /v1/jobs`, and programs that send it."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from api.console.message_body import message_body
from api.jobs.parameters import DEFAULT_PRIORITY
from api.jobs.replay import REPLAY_OF, requested
from shared.domain.job import Job

# A larger body is read from a file.
MAX_INLINE = 8_000
FILE = "request.json"


class Program(NamedTuple):
    """A program in a language."""

    name: str
    title: str
    text: str


def request_body(job: Job) -> dict[str, Any]:
    """The body that submits a job's request again; requests of other APIs as one of this API."""
    request = requested(job)
    body: dict[str, Any] = {"model": job.requested_model or job.model}
    if request.messages is not None:
        body["messages"] = [message_body(message) for message in request.messages]
    if request.prompt is not None:
        body["prompt"] = request.prompt
    sampling = request.sampling
    body |= sampling.model_dump(exclude_defaults=True)
    if request.chat is not None:
        chat = request.chat.model_dump(exclude_defaults=True, exclude_none=True)
        if isinstance(choice := chat.get("tool_choice"), dict):
            chat["tool_choice"] = {"type": "function", "function": choice}
        for tool in chat.get("tools", ()):
            tool.setdefault("type", "function")
        body |= chat
    if request.structured_outputs is not None:
        structure = request.structured_outputs.model_dump(exclude_none=True)
        body["structured_outputs"] = {
            {"json_schema": "json"}.get(name, name): value for name, value in structure.items()
        }
    for name in ("logprobs", "prompt_logprobs", "extra_body", "prompt_cache_key"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if job.priority != DEFAULT_PRIORITY:
        body["priority"] = job.priority
    if metadata := {name: value for name, value in job.metadata.items() if name != REPLAY_OF}:
        body["metadata"] = metadata
    if job.owner.end_user is not None:
        body["user"] = job.owner.end_user
    return body


def body_text(body: dict[str, Any]) -> str:
    """A body as readable JSON."""
    return json.dumps(body, ensure_ascii=False, indent=2)


def programs(text: str) -> list[Program]:
    """Programs that send a body and print its events. They read the server and the key from the environment."""
    inline = len(text) <= MAX_INLINE
    return [
        Program("curl", "curl", _curl(text if inline else None)),
        Program("python", "Python", _python(text if inline else None)),
        Program("node", "Node", _node(text if inline else None)),
    ]


_CURL: Final = """\
curl "$HEADRACE_URL/v1/jobs" \\
  -H "Authorization: Bearer $HEADRACE_API_KEY" \\
  -H "Content-Type: application/json" \\
  -H "Prefer: wait=60" \\
  -d {body}"""


def _curl(text: str | None) -> str:
    body = f"@{FILE}" if text is None else "'{}'".format(text.replace("'", "'\\''"))
    return _CURL.replace("{body}", body)


_PYTHON: Final = """\
import json
import os

import httpx

body = json.loads({body})
headers = {"Authorization": f"Bearer {os.environ['HEADRACE_API_KEY']}"}
with httpx.Client(base_url=os.environ["HEADRACE_URL"], headers=headers, timeout=None) as client:
    job = client.post("/v1/jobs", json=body).raise_for_status().json()
    with client.stream("GET", job["stream_url"]) as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                print(json.loads(line[6:]).get("text", ""), end="", flush=True)"""


def _python(text: str | None) -> str:
    if text is None:
        return _PYTHON.replace("json.loads({body})", f'json.load(open("{FILE}"))')
    literal = f'r"""{text}"""' if '"""' not in text and not text.endswith(('"', "\\")) else repr(text)
    return _PYTHON.replace("{body}", literal)


_NODE: Final = """\
const base = process.env.HEADRACE_URL;
const headers = {
  Authorization: `Bearer ${process.env.HEADRACE_API_KEY}`,
  "Content-Type": "application/json",
};
const body = {body};
const submitted = await fetch(`${base}/v1/jobs`, { method: "POST", headers, body: JSON.stringify(body) });
const job = await submitted.json();
const events = await fetch(base + job.stream_url, { headers });
let rest = "";
for await (const chunk of events.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + chunk).split("\\n");
  rest = lines.pop();
  for (const line of lines) {
    if (line.startsWith("data: ")) process.stdout.write(JSON.parse(line.slice(6)).text ?? "");
  }
}"""


def _node(text: str | None) -> str:
    if text is None:
        text = f'JSON.parse((await import("node:fs")).readFileSync("{FILE}", "utf8"))'
    return _NODE.replace("{body}", text)
