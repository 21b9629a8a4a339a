"""What OpenAI-compatible servers really send, and what has to become of it: one case per oddity, with its source.

A source is a public report (`owner/repository#number`), a server's documentation, or the rule of a format. The bodies
are rewritten; only their shape is the server's.
"""

from tests.support.dialects.base import ANY_ID, Dialect
from tests.support.dialects.chunks import CHUNKS
from tests.support.dialects.errors import ERRORS
from tests.support.dialects.finish_reasons import FINISHES
from tests.support.dialects.frames import FRAMES
from tests.support.dialects.logprobs import LOGPROBS
from tests.support.dialects.tool_calls import TOOL_CALLS
from tests.support.dialects.usage import USAGES

GROUPS = {
    "tool calls": TOOL_CALLS,
    "usage": USAGES,
    "chunks": CHUNKS,
    "finish reasons": FINISHES,
    "frames": FRAMES,
    "errors": ERRORS,
    "logprobs": LOGPROBS,
}

__all__ = ["ANY_ID", "GROUPS", "Dialect"]
