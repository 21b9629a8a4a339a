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
# Of a response 403 only: what it refuses. Amazon, Anthropic, Google, Groq, OpenAI, OpenRouter, xAI, gateways.
_BEARER = r"(?:(?:api|auth|authentication|authori[sz]ation|access|bearer|oauth) )?tokens?"
_OF_KEY = re.compile(
    r"(?:(?:http )?403[ :-]+)?(?:(?:error|permission[ _]denied)[.,:!]+ *)?(?:"
    r"(?:(?:your|this|that|the|an?|no|invalid|incorrect|expired|missing|provided|newly created) ){0,3}"
    r"(?:api[ _-]?keys?|keys? (?:is|has|does|was|limit|not|expired)|credentials?|accounts?|organi[sz]ations?"
    r"|subscriptions?|projects?|teams?|workspaces?|billing|quota|caller|consumer|service account)\b"
    rf"|(?:invalid|expired|missing|revoked) {_BEARER}\b"
    rf"|(?:(?:your|this|the|provided) ){{0,2}}{_BEARER} (?:(?:is|has|was|been) ){{0,2}}"
    r"(?:expired|invalid|revoked|missing|not valid)"
    r"|method doesn.t allow unregistered callers|unauthenticated\b|authentication (?:failed|required|error)"
    r"|(?:you are |user(?:: \S{1,200})? is )?(?:not authori[sz]ed|unauthori[sz]ed)\b"
    r"|(?:you )?exceeded your current quota|you (?:do not|don.t) have access to the (?:account|organi[sz]ation|project)"
    r"|you must be a member of an organi[sz]ation|(?:you have )?insufficient (?:permissions?|quota|scopes?)"
    r"|[\w ]{1,60} api has not been used in project)",
    re.IGNORECASE,
)
_OF_PROMPT = re.compile(r"\b(?:prompts?|inputs?|content)\b", re.IGNORECASE)
_OF_CONTENT = re.compile(
    r"\bmoderation\b|\bflagged\b|\bguardrails?\b|\bprompt injection\b|\bcontent[ _-](?:policy|filter|management)"
    r"|\b(?:usage|safety|responsible ai) polic|\bblocked: ",
    re.IGNORECASE,
)
# llama.cpp, vLLM, SGLang, LM Studio, LMDeploy and others.
_TOO_LONG = re.compile(
    r"\bcontext[ _-](?:size|length|window)\b.{0,80}\b(?:exceed|too (?:small|short)|not enough|maximum|limit)"
    r"|\b(?:exceed|longer than|too (?:long|large)|maximum|greater than).{0,80}\bcontext[ _-](?:size|length|window)\b"
    r"|\bmaximum context\b|\blonger than the maximum model length\b",
    re.IGNORECASE | re.DOTALL,
)
# Anthropic, Bedrock, DashScope, Gemini, GitHub, Groq, Moonshot, OpenAI, TGI, Volcengine, xAI, Zhipu. Applies only to
# errors that refuse the request.
_PROMPT_TOO_LONG = re.compile(
    r"\b(?:prompt|input|request|messages?)\b.{0,40}\b(?:is |are )?too (?:long|large for (?:\S{1,100} )?model)\b"
    r"|\b(?:input|prompt) (?:token count|tokens|length)\b.{0,80}\bexceed|\bprompt exceeds max(?:imum)? length\b"
    r"|\btoo many (?:input |prompt )?tokens\b|\btokens\b.{0,40}\bexceed max message tokens\b"
    r"|\bmaximum prompt length\b|\brange of input length\b|\bmodel max length exceeded\b"
    r"|\bexceeded model token limit\b|\breduce the length of (?:the |your )?(?:input|messages|prompt)\b"
    r"|`inputs` (?:tokens \+ `max_new_tokens` must be <=|must have less than)"
    r"|超[过出].{0,10}上下文|(?:上下文|prompt|输入(?:长度|文本)).{0,10}(?:超[过出长]|过长)",
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
    return _OF_KEY.match(message) is not None and _OF_PROMPT.search(message) is None


def is_about_content(message: str) -> bool:
    """Whether a response 403 is about what the request says."""
    return _OF_CONTENT.search(message) is not None


def is_too_long(message: str) -> bool:
    """Whether the prompt, or the prompt and the answer, exceed the context length."""
    return _TOO_LONG.search(message) is not None


def refuses_length(message: str) -> bool:
    """Whether an error that refuses a request says that it is too long for the model."""
    return is_too_long(message) or _PROMPT_TOO_LONG.search(message) is not None


def is_loading(message: str) -> bool:
    """Whether the model is being loaded."""
    return _LOADING.match(message) is not None


def status_of_message(message: str) -> int | None:
    """The HTTP status that a message stands for, if it has nothing else."""
    return _STATUS_OF_MESSAGE.get(message.strip().rstrip(".!").lower())
