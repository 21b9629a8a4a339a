"""What upstreams write in the messages of errors whose HTTP status and type say something else, or too little.

Messages may quote requests. So a phrase that blames the key or its account counts at the start of a message only, where
no client can put it.
"""

from __future__ import annotations

import re

# Anthropic, DashScope, DeepSeek, MiniMax, Moonshot, Zhipu, gateways.
_NO_CREDIT = re.compile(
    r"(?:sorry, )?(?:your |the )?(?:"
    r"credit balance is (?:too low|insufficient)|insufficient (?:account |user )?(?:balance|credits?|funds)"
    r"|account is (?:suspended|not in good standing|in arrears)|account balance is (?:too low|insufficient)"
    r"|余额不足|.{0,6}账户已欠费)",
    re.IGNORECASE,
)
# Gemini, xAI, and servers that answer 400 for a key.
_KEY_REFUSED = re.compile(
    r"(?:error: )?(?:(?:incorrect|invalid) api[ _-]?key"
    r"|(?:your |the )?api[ _-]?key (?:is |has )?(?:not valid|invalid|expired|not found|was reported))",
    re.IGNORECASE,
)
# Of a response 403 only: what it refuses.
_OF_KEY = re.compile(
    r"\bapi[ _-]?keys?\b|\btokens?\b.{0,40}\b(?:expired|invalid|revoked|missing)|\bcredentials?\b|\bauthenticat"
    r"|\bunauthori[sz]ed|\bnot authori[sz]ed|\baccounts?\b|\borgani[sz]ations?\b|\bsubscriptions?\b"
    r"|\bunregistered callers\b|\bprojects?\b|\bquota\b|\bbilling\b",
    re.IGNORECASE,
)
_OF_CONTENT = re.compile(
    r"\bmoderation\b|\bflagged\b|\bguardrails?\b|\bprompt injection\b|\bcontent[ _-](?:policy|filter|management)"
    r"|\b(?:usage|safety|responsible ai) polic|\bblocked: ",
    re.IGNORECASE,
)
# llama.cpp, vLLM, SGLang, TGI, LMDeploy and others.
_TOO_LONG = re.compile(
    r"\bcontext[ _-](?:size|length|window)\b.{0,80}\b(?:exceed|too (?:small|short)|maximum|limit)"
    r"|\b(?:exceed|longer than|too (?:long|large)|maximum|greater than).{0,80}\bcontext[ _-](?:size|length|window)\b"
    r"|\bmaximum context\b",
    re.IGNORECASE | re.DOTALL,
)
# LM Studio, Ollama.
_LOADING = re.compile(
    r"(?:the )?model\b.{0,100}?\bis (?:still |currently )?(?:loading|being loaded)\b|loading model\b",
    re.IGNORECASE,
)
# Whole messages, as gateways of functions write them without a status.
_STATUS_OF_MESSAGE = {
    "internal server error": 500,
    "internal error": 500,
    "bad gateway": 502,
    "service unavailable": 503,
    "endpoint request timed out": 504,
    "gateway timeout": 504,
    "too many requests": 429,
    "limit exceeded": 429,
    "rate limit exceeded": 429,
    "unauthorized": 401,
}


def says_no_credit(message: str) -> bool:
    """Whether the account of the key has no credit."""
    return _NO_CREDIT.match(message) is not None


def refuses_key(message: str) -> bool:
    """Whether the key itself is refused."""
    return _KEY_REFUSED.match(message) is not None


def is_about_key(message: str) -> bool:
    """Whether a response 403 is about the key or its account, not about the request."""
    return _OF_KEY.search(message) is not None


def is_about_content(message: str) -> bool:
    """Whether a response 403 is about what the request says."""
    return _OF_CONTENT.search(message) is not None


def is_too_long(message: str) -> bool:
    """Whether the prompt, or the prompt and the answer, exceed the context length."""
    return _TOO_LONG.search(message) is not None


def is_loading(message: str) -> bool:
    """Whether the model is being loaded."""
    return _LOADING.match(message) is not None


def status_of_message(message: str) -> int | None:
    """The HTTP status that a message stands for, if it has nothing else."""
    return _STATUS_OF_MESSAGE.get(message.strip().rstrip(".!").lower())
