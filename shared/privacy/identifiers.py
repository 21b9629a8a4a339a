"""Identifiers that are not personal data: UUIDs, hashes, and other ids in hexadecimal digits.

Parts of them look like phone and card numbers, and some have a valid checksum by chance. Their digits are hidden from
the searches for such numbers, and shown again afterwards.
"""

from __future__ import annotations

import re

# A UUID, or hexadecimal digits in one piece, in which a letter follows a digit: nearly all IBANs whose letters are all
# hexadecimal digits have them at the beginning only. A digit or letter beside it would make it another word.
_IDENTIFIER = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{16,})(?![0-9A-Za-z])"
)
_LETTER_AFTER_DIGIT = re.compile(r"[0-9][A-Fa-f]")
_LETTER = re.compile(r"[A-Fa-f]")
# A single letter may have been typed after a card number.
_FEWEST_LETTERS = 2
# Digits are hidden as characters for private use, which are neither digits nor letters.
_HIDDEN = range(0xE0F0, 0xE0FA)
_HIDE = str.maketrans("0123456789", "".join(map(chr, _HIDDEN)))
_SHOW = {character: str(digit) for digit, character in enumerate(_HIDDEN)}
_ANY_HIDDEN = re.compile(f"[{chr(_HIDDEN[0])}-{chr(_HIDDEN[-1])}]")


def hide_identifiers(text: str) -> str:
    """Hide the digits of identifiers, until `show_identifiers`. A text that has the hidden characters remains as it
    is."""
    if not text.isascii() and _ANY_HIDDEN.search(text):
        return text
    return _IDENTIFIER.sub(_hidden, text)


def show_identifiers(text: str) -> str:
    """Show the digits that were hidden, in a text for which `hide_identifiers` has changed something."""
    return text.translate(_SHOW)


def _hidden(match: re.Match[str]) -> str:
    found = match[0]
    is_identifier = "-" in found or (
        _LETTER_AFTER_DIGIT.search(found) is not None and len(_LETTER.findall(found)) >= _FEWEST_LETTERS
    )
    return found.translate(_HIDE) if is_identifier else found
