"""Removes from texts and bodies what identifies people or grants access."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.domain.redaction_rules import NO_OWN_RULES, PRESIDIO_ENTITIES, RedactionKind, RedactionRules
from shared.privacy import cards, ibans, presidio
from shared.privacy.bodies import BodyWalk
from shared.privacy.emails import replace_emails
from shared.privacy.escapes import unescaped
from shared.privacy.identifiers import hide_identifiers, show_identifiers
from shared.privacy.own_rules import OwnRules, placeholder, replace_spans
from shared.privacy.phones import SHORTEST as SHORTEST_PHONE
from shared.privacy.phones import Phones
from shared.privacy.secret_shapes import replace_named_secret, replace_secrets

# What was removed may have hidden something else: a text in which something was found is searched again, at most so
# often. Others are searched once.
_ROUNDS = 5
# Nothing is shorter, except words of projects: `a@b.de`.
_SHORTEST = 6
_DIGITS = "0123456789"
_OTHER_DIGIT = re.compile(r"[^\D0-9]")


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text without what was found in it, and how often something was, by kind or by the name of a rule."""

    text: str
    counts: Mapping[str, int]


class Redactor:
    """Redacts by the rules of a project. It can be used for any number of texts, and in any thread.

    Its time is linear in the size of a text. Redacting a redacted text again changes nothing.
    """

    def __init__(self, rules: RedactionRules = NO_OWN_RULES) -> None:
        kinds = set(rules.kinds)
        self._steps: list[tuple[RedactionKind, Callable[[str, str], tuple[str, int]]]] = []
        self._numbers: list[tuple[RedactionKind, int, Callable[[str, str], tuple[str, int]]]] = []
        self._finds_secrets = RedactionKind.SECRET in kinds
        # Secrets first: passwords in URLs look like e-mail addresses, and tokens may contain numbers.
        if self._finds_secrets:
            self._steps.append((RedactionKind.SECRET, replace_secrets))
        if RedactionKind.EMAIL in kinds:
            self._steps.append((RedactionKind.EMAIL, replace_emails))
        # The strictest first: each finds what is left by those before. Of each, the fewest digits that it has.
        if RedactionKind.IBAN in kinds:
            self._numbers.append((RedactionKind.IBAN, 4, ibans.replace_ibans))
        if RedactionKind.CARD in kinds:
            self._numbers.append((RedactionKind.CARD, cards.SHORTEST, cards.replace_cards))
        self._phones = Phones(rules.phone_regions) if RedactionKind.PHONE in kinds else None
        if self._phones is not None:
            self._numbers.append((RedactionKind.PHONE, SHORTEST_PHONE, self._phones.replace))
        names = [*RedactionKind, *PRESIDIO_ENTITIES, *(rule.name for rule in rules.own)]
        self._placeholders = re.compile("|".join(re.escape(placeholder(name)) for name in names))
        self._own = OwnRules(rules.own, self._placeholders) if rules.own else None
        self._presidio = rules.presidio
        self._shortest = 1 if rules.own or rules.presidio else _SHORTEST

    def load(self) -> None:
        """Load what is otherwise loaded when it is needed first: it takes tenths of a second.

        Raises:
            shared.privacy.presidio.PresidioMissing: as `redact_text`.
        """
        if self._phones is not None:
            self._phones.load()
        if self._presidio:
            presidio.load()

    def redact_text(self, text: str) -> Redacted:
        """Redact a text.

        Raises:
            shared.privacy.presidio.PresidioMissing: the rules demand Presidio, which is not installed.
        """
        counts: dict[str, int] = {}
        return Redacted(self._redact(text, counts), counts)

    def redact_body(self, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """Redact all texts of a body, which is JSON: its request and its output, as a job's row has them.

        Returns a new body, and the counts as `redact_text`. What cannot be searched is replaced by its size: images and
        files, opaque parts of providers, and tokens, as ids or with their log probabilities.

        Raises:
            shared.privacy.presidio.PresidioMissing: as `redact_text`.
        """
        counts: dict[str, int] = {}
        walk = BodyWalk(
            lambda text: self._redact(text, counts), lambda name, value: self._redact_named(name, value, counts)
        )
        redacted: dict[str, Any] = walk.redact(body)
        return redacted, counts

    def _redact(self, text: str, counts: dict[str, int]) -> str:
        if len(text) < self._shortest:
            return text
        for _ in range(_ROUNDS):
            redacted = self._once(text, counts)
            if redacted == text:
                redacted = self._without_escapes(text, counts)
            if redacted == text:
                break
            text = redacted
        return text

    def _redact_named(self, name: str, value: str, counts: dict[str, int]) -> str:
        if not self._finds_secrets:
            return value
        redacted, found = replace_named_secret(name, value, placeholder(RedactionKind.SECRET))
        return _count(RedactionKind.SECRET, counts, redacted, found)

    def _without_escapes(self, text: str, counts: dict[str, int]) -> str:
        """A text of which escapes hide something: without them, redacted. All other texts as they are."""
        plain = unescaped(text)
        if plain == text:
            return text
        redacted = self._once(plain, counts)
        return text if redacted == plain else redacted

    def _once(self, text: str, counts: dict[str, int]) -> str:
        if self._own is not None:
            text = self._own.replace(text, counts)
        for kind, replace in self._steps:
            text = _count(kind, counts, *replace(text, placeholder(kind)))
        text = self._replace_numbers(text, counts)
        if self._presidio:
            text = replace_spans(text, presidio.entities(text), self._placeholders, counts)
        return text

    def _replace_numbers(self, text: str, counts: dict[str, int]) -> str:
        original = text
        if not text.isascii():
            text = _OTHER_DIGIT.sub(lambda digit: str(int(digit[0])), text)
        digits = sum(map(text.count, _DIGITS))
        shown, found = text, 0
        if any(digits >= fewest for _, fewest, _ in self._numbers):
            text = hide_identifiers(text)
        is_hidden = text != shown
        for kind, fewest, replace in self._numbers:
            if digits >= fewest:
                text, count = replace(text, placeholder(kind))
                text = _count(kind, counts, text, count)
                found += count
        if not found:
            return original
        return show_identifiers(text) if is_hidden else text


def _count(kind: RedactionKind, counts: dict[str, int], text: str, found: int) -> str:
    if found:
        counts[kind.value] = counts.get(kind.value, 0) + found
    return text
