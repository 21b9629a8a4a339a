"""API keys, tokens, passwords and private keys, by their shapes.

Each pattern has a marker, a text that its matches contain. Most texts contain none, so that no pattern is run.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Shape(NamedTuple):
    """A pattern that is run if a text contains the marker. Its group `secret`, or else all of it, is replaced."""

    marker: str
    pattern: re.Pattern[str]


def _shape(marker: str, pattern: str, flags: re.RegexFlag = re.NOFLAG) -> Shape:
    return Shape(marker, re.compile(pattern, flags))


# The characters of tokens in base64, and of those in base64url.
_WORD = r"[A-Za-z0-9_-]"
_ALL_SHAPES = (
    # PEM and OpenPGP. A key without its end counts too.
    _shape(
        "-----BEGIN ",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?:\s|\\n|\\r){0,4}(?:Proc-Type|DEK-Info|Version|Comment): ?[^\n\\]{0,200}){0,4}"
        r"(?:[A-Za-z0-9+/=\s]|\\[nr])*(?:-----END [A-Z0-9 ]{0,60}-----)?",
    ),
    # Headrace's own keys.
    _shape("hr_", r"hr_[0-9a-f]{8}_[A-Za-z0-9_-]{43}"),
    # JSON Web Tokens: the header begins with {" in base64. Each row of characters is scanned once.
    _shape("eyJ", rf"eyJ(?<![\w-]eyJ){_WORD}{{8,}}+\.{_WORD}{{8,}}(?:\.{_WORD}*)?"),
    # OpenAI, Anthropic, OpenRouter, DeepSeek and others.
    _shape("sk-", rf"sk-(?<![\w-]sk-)(?={_WORD}{{0,100}}[0-9]){_WORD}{{20,}}"),
    # AWS access keys. Their secrets are found beside their names.
    _shape("AKIA", r"AKIA(?<!\wAKIA)[A-Z0-9]{16}(?!\w)"),
    _shape("ASIA", r"ASIA(?<!\wASIA)[A-Z0-9]{16}(?!\w)"),
    _shape("ghp_", r"ghp_[A-Za-z0-9]{36,}"),  # GitHub
    _shape("gho_", r"gho_[A-Za-z0-9]{36,}"),
    _shape("ghu_", r"ghu_[A-Za-z0-9]{36,}"),
    _shape("ghs_", r"ghs_[A-Za-z0-9]{36,}"),
    _shape("ghr_", r"ghr_[A-Za-z0-9]{36,}"),
    _shape("github_pat_", r"github_pat_[A-Za-z0-9_]{22,}"),
    _shape("glpat-", rf"glpat-{_WORD}{{20,}}"),  # GitLab
    _shape("xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,}"),  # Slack
    _shape("hooks.slack.com/", r"hooks\.slack\.com/(?P<secret>(?:services|workflows)/[A-Za-z0-9/_-]{20,})"),
    _shape("AIza", rf"AIza{_WORD}{{35}}"),  # Google
    _shape("ya29.", rf"ya29\.{_WORD}{{20,}}"),
    _shape("k_live_", r"(?:sk|pk|rk)_live_[A-Za-z0-9]{16,}"),  # Stripe
    _shape("k_test_", r"(?:sk|pk|rk)_test_[A-Za-z0-9]{16,}"),
    _shape("whsec_", r"whsec_[A-Za-z0-9+/=_-]{20,}"),  # Stripe, and Standard Webhooks
    _shape("hf_", r"hf_(?<!\whf_)[A-Za-z0-9]{30,}"),  # Hugging Face
    _shape("npm_", r"npm_(?<!\wnpm_)[A-Za-z0-9]{36,}"),
    _shape("pypi-", rf"pypi-{_WORD}{{50,}}"),
    _shape("SG.", rf"SG\.{_WORD}{{16,64}}\.{_WORD}{{16,}}"),  # SendGrid
    _shape("r8_", r"r8_(?<!\wr8_)[A-Za-z0-9]{36,}"),  # Replicate
    _shape("rpa_", r"rpa_(?<!\wrpa_)[A-Za-z0-9]{40,}"),  # RunPod
    _shape("gsk_", r"gsk_(?<!\wgsk_)[A-Za-z0-9]{40,}"),  # Groq
    _shape("xai-", r"xai-(?<!\wxai-)[A-Za-z0-9]{40,}"),
    _shape("dop_v1_", r"dop_v1_[0-9a-f]{64}"),  # DigitalOcean
    _shape("AccountKey=", r"AccountKey=(?P<secret>[A-Za-z0-9+/=]{40,})"),  # Azure
    _shape(":AA", r"(?<!\d)[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"),  # Telegram
    # The user and the password in a URL.
    _shape("://", r"://(?P<secret>[^\s/?#@:\[\]]{0,100}:[^\s/?#@\[\]]{1,100})@"),
)
_WITH_UNDERSCORE = tuple(shape for shape in _ALL_SHAPES if "_" in shape.marker)
_SHAPES = tuple(shape for shape in _ALL_SHAPES if "_" not in shape.marker)
# As above, of texts in lower case.
_FOLDED_SHAPES = (
    _shape("bearer", r"bearer(?<!\wbearer)[ \t]{1,4}(?P<secret>(?=[a-z._~+/=-]{0,100}[0-9])[a-z0-9._~+/=-]{16,})"),
    _shape(
        "authorization",
        r"authorization[\"']?[ \t]{0,4}[:=][ \t]{0,4}[\"']?(?:basic|token|digest|apikey)[ \t]{1,4}"
        r"(?P<secret>[^\s\"',;\[\]]{8,})",
    ),
)
# Parts of the names below. A text without any of them has none of the names.
_NAMES = (
    "passw", "pwd", "passphrase", "secret", "token", "api", "access", "private_key", "kennwort", "contraseña", "clave",
    "mot de passe", "パスワード",
)  # fmt: skip
# The value of a name that says that it is secret: `password: hunter2`, `"api_key": "..."`. It has a digit or a sign, as
# words do not.
_NAMED = re.compile(
    r"(?:passwort|passw(?:or)?d|passphrase|pwd|secret|token|api[_ -]?key|access[_-]key|private_key|kennwort"
    r"|contraseña|clave|mot de passe|パスワード)[\"']?"
    r"(?:[ \t]{0,3}(?::=|=>|[:=：])[ \t]{0,3}|[ \t](?:is|ist|est|es|lautet)[ \t:]{1,3}|は)"
    r"[\"'`「]?(?P<secret>(?=[^\s\"'`,;「」\[\]<>(){}]{0,64}[0-9!$%&*+=?@^~])[^\s\"'`,;「」\[\]<>(){}]{6,200})"
)

_BETWEEN = ": "


def fold(text: str) -> str:
    """The text in lower case, with each character in the same place."""
    folded = text.lower()
    if len(folded) != len(text):  # one character has become two
        folded = "".join(low if len(low := character.lower()) == 1 else character for character in text)
    return folded


def replace_secrets(text: str, placeholder: str) -> tuple[str, int]:
    """Replace secrets; return the new text, and how many there were."""
    count = 0
    folded = fold(text)
    patterns = [shape.pattern for shape in _FOLDED_SHAPES if shape.marker in folded]
    if any(name in folded for name in _NAMES):
        patterns.append(_NAMED)
    for pattern in patterns:
        changed, found = _replace(text, pattern, placeholder, within=fold(text) if count else folded)
        text, count = changed, count + found
    for shape in _SHAPES:
        if shape.marker in text:
            text, found = _replace(text, shape.pattern, placeholder)
            count += found
    if "_" in text:  # in half of the markers, and in few texts
        for shape in _WITH_UNDERSCORE:
            if shape.marker in text:
                text, found = _replace(text, shape.pattern, placeholder)
                count += found
    return text, count


def replace_named_secret(name: str, value: str, placeholder: str) -> tuple[str, int]:
    """Replace a secret at the beginning of a value that only the value's name shows, as `name: value` would be in a
    text: the value alone is not known for one. Returns the new value, and whether something was replaced, as 1 or 0.
    """
    folded = fold(name)
    patterns = [shape.pattern for shape in _FOLDED_SHAPES if shape.marker in folded]
    if any(part in folded for part in _NAMES):
        patterns.append(_NAMED)
    if not patterns:
        return value, 0
    start = len(folded) + len(_BETWEEN)
    line = f"{folded}{_BETWEEN}{fold(value)}"
    for pattern in patterns:
        match = pattern.search(line)
        # Not what is in the value with a name of its own: that is found without this name, too.
        if match is not None and match.start() < start <= match.start("secret"):
            before, after = match.start("secret") - start, match.end("secret") - start
            return f"{value[:before]}{placeholder}{value[after:]}", 1
    return value, 0


def _replace(text: str, pattern: re.Pattern[str], placeholder: str, within: str | None = None) -> tuple[str, int]:
    """Replace the matches of a pattern in a text. `within`: its matches in this text of the same length."""
    if "secret" not in pattern.groupindex:
        return pattern.subn(placeholder, text)
    pieces: list[str] = []
    end = 0
    for match in pattern.finditer(text if within is None else within):
        pieces += (text[end : match.start("secret")], placeholder)
        end = match.end("secret")
    if not pieces:
        return text, 0
    return "".join((*pieces, text[end:])), len(pieces) // 2
