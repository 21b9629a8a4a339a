"""What is removed from an upstream's error text before clients receive it."""

from __future__ import annotations

import pytest

from workers.engines.upstream.redaction import redact

KEY = "model-key-8c1f22aa90b7-XyZ"

# An error text, and the parts of it that must not reach a client.
HIDDEN = [
    ("Cannot connect to host 10.0.3.17:8000 ssl:default [Connect call failed ('10.0.3.17', 8000)]", ["10.0.3.17"]),
    ('Post "http://vllm-0.vllm.models.svc.cluster.local:8000/v1/chat/completions": EOF', ["vllm-0", "svc", "8000"]),
    ("dial tcp [fd00:ec2::254]:443: i/o timeout", ["fd00", "254"]),
    ("dial tcp fe80::1c2b:3d4e: no route", ["fe80", "3d4e"]),
    ("connect ECONNREFUSED ::1:11434", ["11434"]),
    ("dial tcp 127.0.0.1:11434: connect: connection refused", ["127.0.0.1", "11434"]),
    ("Failed to connect to localhost:8080", ["localhost", "8080"]),
    ("lookup ollama-backend on 10.96.0.10:53: no such host", ["ollama-backend", "10.96"]),
    ("upstream llm-gateway:4000 returned 502", ["llm-gateway", "4000"]),
    ("HTTPConnectionPool(host='inference-7', port=8001): Max retries exceeded with url: /v2/models/x", ["inference-7"]),
    ("could not reach gpu3.corp", ["gpu3"]),
    ("redis://default:hunter2@cache.internal:6379/0 is down", ["hunter2", "cache", "6379"]),
    ("See https://user:pw@wiki.example.com/page?token=abc", ["wiki", "pw@", "abc"]),
    ("s3://private-weights/llama/model.bin: access denied", ["private-weights"]),
    ("[Errno 2] No such file or directory: '/opt/models/llama-3/config.json'", ["/opt", "llama-3/config"]),
    ('File "/usr/lib/python3.11/site-packages/vllm/engine.py", line 12, in step', ["/usr", "engine.py"]),
    ("C:\\models\\private\\llama.gguf could not be read", ["private", "C:"]),
    ("~/models/x.gguf is missing", ["models/x"]),
    ("error in ../server/handlers/chat.go:88", ["handlers"]),
    ("\\\\fileserver\\share\\weights.bin is missing", ["fileserver"]),
    ('out of memory\nTraceback (most recent call last):\n  File "x.py", line 1\n', ["Traceback", "x.py"]),
    ("boom\n    at Server.handle (/srv/app/index.js:10:5)", ["Server.handle", "index.js"]),
    ("Incorrect API key provided: sk-proj-abcdefghijkl1234.", ["abcdefghijkl", "1234"]),
    ("Incorrect API key provided: sk-abc12***********wxyz. You can find it.", ["abc12", "wxyz"]),
    ("invalid key gsk_0123456789abcdefghij", ["0123456789"]),
    ("bad token hf_AbCdEfGhIjKlMnOp", ["AbCdEf"]),
    ("API key not valid: AIzaSyA-1234567890abcdefghijklmnop", ["1234567890"]),
    ("Authorization: Bearer abc.def-123", ["abc.def"]),
    ("header 'x-api-key: 77aa-bb' is wrong", ["77aa"]),
    ("api key: ...f3xyz is disabled", ["f3xyz"]),
    ("The API key ending in 9f3x is disabled", ["9f3x"]),
    ("password=hunter2 is wrong", ["hunter2"]),
    ("cannot connect to gpu-node-7", ["gpu-node-7"]),
    ("the pod vllm-7d9c5-x2x is not ready", ["vllm-7d9c5"]),
    ("server inference-gw:8443 closed", ["inference-gw", "8443"]),
    ("token=abcd1234efgh is expired", ["abcd1234"]),
    ("secret: opensesame", ["opensesame"]),
    ("Authorization=Basic dXNlcjpwYXNz", ["dXNlcj"]),
    ("User: arn:aws:iam::123456789012:user/bob is not authorized", ["123456789012", "bob"]),
    ("The security token AKIAIOSFODNN7EXAMPLE is invalid", ["AKIAIOS"]),
    ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc expired", ["eyJhbG"]),
    ("Rate limit reached for m in organization org-AbC123xyz on tokens per min", ["AbC123"]),
    ("subscription 0123456789abcdef0123456789abcdef is over quota", ["0123456789abcdef"]),
    (f"unknown key {KEY}", [KEY]),
    (f"unknown key {KEY[:9]}", [KEY[:9]]),
    (f"unknown key (ends with {KEY[-7:]})", [KEY[-7:]]),
    ("contact ops@corp-llm.example for access", ["ops@", "corp-llm"]),
]

# Error texts that clients need as they are.
KEPT = [
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages).",
    "Invalid value: 'foo'. Supported values are: 'low', 'medium', and 'high'.",
    "body.messages.0.content: Input should be a valid string",
    "'messages[0].role' must be one of 'system', 'user'",
    "max_tokens:4096 is above the limit of 1/2 of the context",
    "The model `meta-llama/Llama-3.1-8B-Instruct` does not exist",
    "gpt-4.1-mini does not support temperature=0.2 with response_format.json_schema",
    "Content-Type must be application/json or text/event-stream",
    "Rate limit: 60 requests/min, 1.5 tokens/s. Try again in 20s.",
    "The token limit is reached; the key is missing",
    "grammar error at line 3: unexpected '{'",
    "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 79.15 GiB total capacity)",
    "version v0.6.3 is not supported before 12:30:15",
    "You have no access to gpt-4o-mini-2024; switch to claude-3-5-sonnet or upgrade from llama-3",
    "missing key 'field1' in the schema; unexpected key: prop2",
    "unexpected token: '}' at position 7; the token 'abc1' is not in the vocabulary",
    "tools[0].function.name must match ^[a-zA-Z0-9_-]{1,64}$",
    "response_format of type json_schema requires strict:true and additionalProperties:false",
    "n must be between 1 and 128, best_of:4",
    "Ungültiger Wert für «stop»: höchstens 4",
]


@pytest.mark.parametrize(("text", "hidden"), HIDDEN, ids=lambda value: str(value)[:50])
def test_addresses_paths_and_secrets_are_removed(text: str, hidden: list[str]) -> None:
    redacted = redact(text, KEY)
    assert redacted.text
    for part in hidden:
        assert part not in redacted.text


@pytest.mark.parametrize("text", KEPT)
def test_other_text_is_kept(text: str) -> None:
    assert redact(text, KEY).text == text
    assert redact(text).removed == ()


@pytest.mark.parametrize(("text", "hidden"), HIDDEN, ids=lambda value: str(value)[:50])
def test_what_was_removed_contains_no_secret(text: str, hidden: list[str]) -> None:
    """It goes to the log."""
    removed = " ".join(redact(text, KEY).removed)
    for secret in (KEY, KEY[:9], KEY[-7:], "hunter2", "abcdefghijkl", "AKIAIOS", "eyJhbG", "AbCdEf", "9f3x", "f3xyz"):
        assert secret not in removed


def test_removed_addresses_and_paths_are_returned() -> None:
    redacted = redact("http://10.0.0.5:8000/v1 failed: /opt/models/x.bin")
    assert redacted.text == "[address] failed: [path]"
    assert redacted.removed == ("http://10.0.0.5:8000/v1", "/opt/models/x.bin")


def test_long_texts_take_little_time() -> None:
    """The patterns do not backtrack: this would not end otherwise. Messages have at most 500 characters."""
    for unit in ("a", "a.", "/a", "a:", "key ", "1.", "-", "ab-1", "::", "A1_", "\\a", "=", " "):
        redact((unit * 500)[:500], KEY)
