"""Texts that make a pattern work as hard as it can: beginnings of matches without ends, and rows of near misses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from shared.domain.redaction_rules import OwnRule, RedactionKind, RedactionRules
from shared.privacy.redaction import Redactor

# What each text repeats, by the kind that it is for.
UNITS: Mapping[str, tuple[RedactionKind, str]] = {
    "card: digits without end": (RedactionKind.CARD, "4"),
    "card: rows that are too short": (RedactionKind.CARD, "4111 1111 111 a"),
    "card: single digits": (RedactionKind.CARD, "4 4 4 4 4 4 4 4 4 4 4 a"),
    "card: wrong checksums": (RedactionKind.CARD, "4111 1111 1111 1112, "),
    "card: wrong checksums in other groups": (RedactionKind.CARD, "41 11 11 11 11 11 11 12, "),
    "card: digits and letters": (RedactionKind.CARD, "6a"),
    "iban: beginnings": (RedactionKind.IBAN, "DE00 "),
    "iban: letters": (RedactionKind.IBAN, "DE"),
    "iban: wrong checksums": (RedactionKind.IBAN, "DE00 3704 0044 0532 0130 00 "),
    "email: local parts": (RedactionKind.EMAIL, "a.b-c_"),
    "email: signs": (RedactionKind.EMAIL, "a@"),
    "email: domains without end": (RedactionKind.EMAIL, "a@a.a.a.a.a.a.1 "),
    "email: addresses": (RedactionKind.EMAIL, "a@b.de "),
    "email: escapes": (RedactionKind.EMAIL, r"\\\n\u0041\t"),
    "email: backslashes": (RedactionKind.EMAIL, "\\"),
    "email: escapes of URLs": (RedactionKind.EMAIL, "a%2540%2e%3D%"),
    "email: percent signs": (RedactionKind.EMAIL, "%25"),
    "phone: digits": (RedactionKind.PHONE, "030 "),
    "phone: signs": (RedactionKind.PHONE, "+("),
    "phone: near misses": (RedactionKind.PHONE, "0301 2345, "),
    "phone: numbers": (RedactionKind.PHONE, "+49 30 1234567, "),
    "phone: invalid numbers": (RedactionKind.PHONE, "+999 30 1234567, "),
    "phone: identifiers": (RedactionKind.PHONE, "1a"),
    "phone: UUIDs without end": (RedactionKind.PHONE, "01234567-0123-0123-0123-"),
    "phone: joined numbers": (RedactionKind.PHONE, "030 1234567-_"),
    "secret: headers of tokens": (RedactionKind.SECRET, "eyJ"),
    "secret: headers with dots": (RedactionKind.SECRET, "eyJabcdefgh."),
    "secret: beginnings of keys": (RedactionKind.SECRET, "sk-"),
    "secret: keys without digits": (RedactionKind.SECRET, "sk-abcdefghijklmnopqrstuvwxyz "),
    "secret: private keys without end": (RedactionKind.SECRET, "-----BEGIN PRIVATE KEY-----"),
    "secret: names": (RedactionKind.SECRET, "password "),
    "secret: names with values": (RedactionKind.SECRET, "password: aaaaaa "),
    "secret: URLs": (RedactionKind.SECRET, "://a"),
    "secret: URLs without sign": (RedactionKind.SECRET, "://user:password/ "),
    "secret: headers of requests": (RedactionKind.SECRET, "authorization: bearer "),
    "secret: many prefixes": (RedactionKind.SECRET, "ghp_AKIA-glpat-xoxb-AIza"),
}
_OWN = OwnRule(name="own", pattern=r"\b[A-Z]{1,3}[ -]?[A-Z]{1,2} ?[0-9]{1,3}[A-Z]\b")
_WORDS = OwnRule(name="words", words=tuple(f"{'a' * length}b" for length in range(1, 11)))
OWN_RULES: Mapping[str, tuple[OwnRule, str]] = {
    "own pattern: beginnings": (_OWN, "ABC DE123 "),
    "own words: beginnings": (_WORDS, "a"),
}


def redactor(name: str) -> tuple[Redactor, Callable[[int], str]]:
    """The redactor that a text is for, with this kind only, and the text by its length."""
    if name in UNITS:
        kind, unit = UNITS[name]
        rules = RedactionRules(kinds=(kind,))
    else:
        rule, unit = OWN_RULES[name]
        rules = RedactionRules(kinds=(), own=(rule,))

    def text(length: int) -> str:
        return (unit * (length // len(unit) + 1))[:length]

    return Redactor(rules), text


NAMES = (*UNITS, *OWN_RULES)


def cpu_s(name: str, length: int, repeats: int = 3) -> float:
    """The CPU time that the text of this length takes: the best of several."""
    redact, text = redactor(name)
    content = text(length)
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        redact.redact_text(content)
        best = min(best, time.process_time() - began)
    return best
