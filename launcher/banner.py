"""The banner printed once everything is ready."""

import json
import shlex

from launcher.settings import Settings


def banner(
    settings: Settings,
    models: list[str],
    api_key: str,
    flower_password: str,
    own_servers: str,
    console: str | None,
) -> str:
    """Return the addresses, the API key, and a sample request that can be pasted as is.

    `console`: the address of the console, which may be a one-time link; None if the console is off.
    """
    console_line = f"  Console   {console}\n" if console else ""
    question = {"model": models[0], "stream": True, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    return f"""
Headrace is ready.

{console_line}  API       {settings.api_url}
  Docs      {settings.api_url}/docs
  Flower    {settings.flower_url}   (user admin, password {flower_password})
  API key   {api_key}
  Models    {", ".join(models)}
  Servers   {own_servers}
  Logs      {settings.logs}

Try a streaming request:

  curl -N {settings.api_url}/v1/chat/completions \\
    -H "Authorization: Bearer {api_key}" \\
    -H "Content-Type: application/json" \\
    -d {shlex.quote(json.dumps(question))}

Add a worker, from another terminal:   make worker MODEL={models[0]}
Stop everything:                       Ctrl-C
"""
