"""Removes addresses, file paths and secrets from an upstream's error text, which clients receive."""

from __future__ import annotations

import re
from dataclasses import dataclass

ADDRESS, PATH, SECRET = "[address]", "[path]", "***"
# Shorter parts of the model's key are not recognized.
MIN_FRAGMENT = 6

_HOST = r"[A-Za-z0-9](?:[\w-]*[A-Za-z0-9])?"
_SUFFIXES = (
    "local|localdomain|internal|intranet|intra|corp|lan|home|private|svc|cluster|consul|docker|arpa|test|example|"
    "com|net|org|io|ai|dev|cloud|app|co|eu|de|fr|uk|us|ch|cn|jp|in|info|biz|tech|gov|edu|mil"
)
_SECRETS = re.compile(
    r"""
    \b(?:sk|pk|rk|hf|gsk|xai|csk|fw|r8|tgp|nvapi|ghp|gho|glpat|xoxb|ya29|AIza)[-_.]?[\w*.~+/-]{8,}  # by prefix
    |\bsk-[\w*.-]+
    |\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9*]{8,}                                        # AWS ids
    |\barn:aws[\w-]*:\S+
    |\beyJ[\w-]{6,}(?:\.[\w-]*){0,2}                                               # JSON web tokens
    |\b(?:org|proj|acct|user)[-_][A-Za-z0-9]{6,}                                   # accounts
    |-----BEGIN[^-]*-----.*?(?:-----END[^-]*-----|$)
    |\b(?=[A-Za-z0-9_/+=-]*\d)(?=[A-Za-z0-9_/+=-]*[A-Za-z])[A-Za-z0-9_+=-]{32,}    # long random text
    """,
    re.VERBOSE | re.DOTALL,
)
_LABELLED = re.compile(
    r"""(?P<label>\b(?:bearer|basic|api[-_ ]?key|key|x-api-key|access[-_ ]?token|auth[-_ ]?token|token|secret|password|
    passwd|pwd|authorization|credentials?)\b(?:\s+(?:provided|is|was|ending\s+in|ends\s+with|starting\s+with))*
    \s*(?:[:=]\s*|\s))(?P<value>(?:bearer\s+|basic\s+)?(?:["'`(]*[\w*.~+/=-]{3,}))""",
    re.VERBOSE | re.IGNORECASE,
)
_WEAK_LABEL = re.compile(r"(?:key|token)\b", re.IGNORECASE)
_ADDRESSES = re.compile(
    rf"""
    \b[a-z][a-z0-9+.-]*://[^\s"'<>`)\]]+                                           # URLs
    |\b\d{{1,3}}(?:\.\d{{1,3}}){{3}}\b(?::\d+)?                                    # IPv4
    |\[[0-9A-Fa-f:]*:[0-9A-Fa-f:.%\w]*\](?::\d+)?                                  # IPv6 in brackets
    |(?<![\w:])(?=[0-9A-Fa-f]{{0,4}}(?::[0-9A-Fa-f]{{1,4}}){{0,6}}::|(?:[0-9A-Fa-f]{{1,4}}:){{7}})[0-9A-Fa-f:]{{3,}}
    |\b[\w.+-]+@{_HOST}(?:\.{_HOST})+                                              # mail addresses
    |\b(?:{_HOST}\.)+(?:{_SUFFIXES})\b(?:\.{_HOST})*(?::\d+)?                      # names
    |\b(?:{_HOST}\.)+{_HOST}:\d{{2,5}}\b
    |\blocalhost\b(?::\d+)?
    |(?<=host=)["']?{_HOST}["']?
    |(?<=//){_HOST}(?::\d+)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAMED_HOST = re.compile(
    rf"""
    (?P<before>\b(?:lookup|resolv(?:e|ing))\s+["'`]?)(?P<name>{_HOST})
    |(?P<before_port>\b(?:host|hostname|server|backend|upstream|node|pod|connect(?:ing|ed)?\s+to|dial\s+tcp|at|from|to)
    \s+["'`]?)(?P<name_port>(?=[\w-]*[A-Za-z]){_HOST}:\d{{2,5}}\b)
    |(?P<before_number>\b(?:host|hostname|node|pod|connect(?:ing|ed)?\s+to|dial\s+tcp)\s+["'`]?)
    (?P<name_number>(?=[\w-]*\d)(?=[\w-]*-){_HOST}\b)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PATHS = re.compile(
    r"""(?<![\w/.])(?:~|\.{1,2})?(?:/[\w.@+%~-]+){2,}/?(?:",\s+line\s+\d+|:\d+)?
    |\b[A-Za-z]:\\[^\s"'<>|]+
    |\\\\[\w.-]+\\[^\s"'<>|]+
    |(?<![\w/.])/(?:etc|root|home|tmp|var|opt|srv|mnt|data|app|usr|workspace|models?|run|proc|dev)\b""",
    re.VERBOSE,
)
# Of a URL: its user and password, and its query.
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@|\?.*")
_TRACEBACK = re.compile(r"\s*Traceback \(most recent call last\).*|\s*\n\s+at .*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text for clients, and the addresses and paths that were removed from it; secrets are in neither."""

    text: str
    removed: tuple[str, ...] = ()


def redact(text: str, *keys: str) -> Redacted:
    """Remove what clients must not learn. `keys` are the model's own keys, of which no part is left either."""
    removed: list[str] = []

    def hide(placeholder: str, match: re.Match[str]) -> str:
        removed.append(_CREDENTIALS.sub("", match[0]))
        return placeholder

    def hide_host(match: re.Match[str]) -> str:
        before, name = (group for group in match.groups() if group)
        removed.append(name)
        return before + ADDRESS

    text = without_secrets(text, *keys)
    text = _TRACEBACK.sub("", text)
    text = _ADDRESSES.sub(lambda match: hide(ADDRESS, match), text)
    text = _NAMED_HOST.sub(hide_host, text)
    text = _PATHS.sub(lambda match: hide(PATH, match), text)
    return Redacted(text.strip(), tuple(dict.fromkeys(removed)))


def without_secrets(text: str, *keys: str) -> str:
    """Replace keys, tokens, account ids, and all parts of `keys` of `MIN_FRAGMENT` characters or more."""
    for key in keys:
        text = _without_fragments(text.replace(key, SECRET), key)
    text = _SECRETS.sub(SECRET, text)
    return _LABELLED.sub(_hide_value, text)


def _hide_value(match: re.Match[str]) -> str:
    label, value = match["label"], match["value"]
    is_assigned = label.rstrip().endswith((":", "="))
    is_mixed = re.search(r"\d", value) is not None and re.search(r"[A-Za-z]", value) is not None
    if _WEAK_LABEL.match(label):  # a key or a token may also be one of JSON or of a text
        is_secret = is_mixed and len(value) >= (8 if is_assigned else 12)
    else:
        is_secret = is_assigned or is_mixed
    is_masked = "*" in value or value.lstrip("\"'`(").startswith("..")
    return label + SECRET if is_secret or is_masked else match[0]


def _without_fragments(text: str, key: str) -> str:
    at = 0
    while at <= len(key) - MIN_FRAGMENT:
        if (start := text.find(key[at : at + MIN_FRAGMENT])) < 0:
            at += 1
            continue
        end = start + MIN_FRAGMENT
        length = MIN_FRAGMENT
        while at + length < len(key) and end < len(text) and text[end] == key[at + length]:
            length, end = length + 1, end + 1
        text = text[:start] + SECRET + text[end:]
    return text
