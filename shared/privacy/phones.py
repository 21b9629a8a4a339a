"""Phone numbers, as `phonenumbers` (Google's libphonenumber) knows them.

Candidates are found by one scan. A number with a country code is looked up as it is; one without is looked up in the
regions of the rules, if it is written as a phone number: with its leading 0, in brackets, in groups, or after a word
such as `phone`. The library is imported when the first candidate is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from shared.privacy.candidates import SEPARATORS, Span, replace_checked

SHORTEST = 7
_LONGEST = 15
# How often a candidate is shortened.
_SHORTENED = 5
# Numbers that are looked up in a text: each takes some 20 microseconds and region.
MOST = 200
_S = f"{SEPARATORS}()/\uff08\uff09"
# It begins with a sign, a bracket or a digit, but not after a letter or digit, nor after what precedes a part of a
# longer name or number, such as `ORD-`. The most frequent dates are left out here.
_BEGIN = r"[+(\d\uff0b]"
_CANDIDATE = re.compile(
    rf"{_BEGIN}(?<![\w#$€£¥=_]{_BEGIN})(?<!\d[.,:-]{_BEGIN})(?<![A-Za-z]-{_BEGIN})(?!\d{{3}}-\d\d-\d\d(?![\d-]))"
    rf"[\d{_S}]{{6,40}}(?<=\d)(?![\w%€])"
)
# What makes a number the beginning of an order number or another identifier: `0252288663-Y50`, but not `-home`. Words
# have more than two letters in a row.
_JOINED = re.compile(r"[-_][-_0-9]{0,40}[A-Za-z](?![^\W\d_]{2})")
_PARTS = re.compile(r"[ \u00a0]{2,}| ?[/;] |(?<=\d) ?(?=\+)")
_DATE = re.compile(
    r"(?:\d{4}([-./])\d{1,2}\1\d{1,2}|\d{1,2}([-./])\d{1,2}\2(?:\d{4}|\d{2}))(?:[ ,]+\d{1,2})?$"  # and an hour
)
_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}$")
# The begin of a number such as 0.4587128, as scores and embeddings are: with 9 to 15 digits, most would be valid.
_FRACTION = re.compile(r"0\.\d")
_GROUP = re.compile(r"\d+")
# A slash is behind the area code only.
_LATE_SLASH = re.compile(r"\D*\d+[^\d/]+\d+[^/]*/")
# What follows an amount: `612 345 678 km`.
_UNIT = re.compile(
    r"[ \u00a0]?(?:[kcm]?m|[kM]?g|l|[kMGT]?B|[mk]?s|[kMG]?W|h|°|EUR|USD|GBP|JPY|CHF|Euros?|Dollars?|[$€£¥円%])(?!\w)"
)
_CONTEXT = re.compile(
    r"(?:tel|phone|call|mobile?|cell|handy|fax|whatsapp|sms|telef|téléphone|portable|móvil|movil|anruf|rückruf|appel|llam|電話|携帯)"
    r"[\w.]{0,12}[^\w\n]{0,4}(?:\w{1,12}[^\w\n]{0,3}){0,2}$",
    re.IGNORECASE,
)
_CONTEXT_CHARACTERS = 40


@cache
def _library() -> Any:
    import phonenumbers  # it takes a tenth of a second, and megabytes

    return phonenumbers


@cache
def _national_prefix(region: str) -> str | None:
    """What numbers of a region begin with where no country code does."""
    from phonenumbers import PhoneMetadata

    metadata = PhoneMetadata.metadata_for_region(region)
    prefix: str | None = None if metadata is None else metadata.national_prefix
    return prefix


class Phones:
    """Finds phone numbers, of which those without a country code are of these regions."""

    def __init__(self, regions: Sequence[str]) -> None:
        self._regions = regions

    def load(self) -> None:
        """Load the library with the tables of the regions."""
        _library()
        for region in self._regions:
            _national_prefix(region)

    def replace(self, text: str, placeholder: str) -> tuple[str, int]:
        """Replace phone numbers; return the new text, and how many there were."""
        return replace_checked(text, _CANDIDATE, self._check, placeholder, most=MOST, rest=_CANDIDATE)

    def _check(self, match: re.Match[str]) -> Span:
        for start, end in _parts(match):
            part = match.string[start:end]
            groups = [found.span() for found in _GROUP.finditer(part)]
            digits = sum(after - before for before, after in groups)
            # Without its last groups, if these are not of the number.
            for _ in range(_SHORTENED):
                if digits < SHORTEST:
                    break
                number = part[: groups[-1][1]]
                if digits <= _LONGEST and not _DATE.match(number) and self._is_number(number, match.string, start):
                    return start, start + groups[-1][1]
                before, after = groups.pop()
                digits -= after - before
        return None

    def _is_number(self, number: str, text: str, start: int) -> bool:
        if number[0] in "+\uff0b":
            return _is_valid(number, None)
        if _FRACTION.match(number) or _JOINED.match(text, start + len(number)):
            return False
        digits = "".join(_GROUP.findall(number))
        if digits.startswith("00") and _is_valid(f"+{digits[2:]}", None):
            return True
        return any(
            self._is_written_as_number(number, digits, region, text, start) and _is_valid(number, region)
            for region in self._regions
        )

    @staticmethod
    def _is_written_as_number(number: str, digits: str, region: str, text: str, start: int) -> bool:
        has_prefix = digits.startswith("0")
        prefix = _national_prefix(region)
        if prefix is not None and has_prefix != prefix.startswith("0"):
            return False
        if _ADDRESS.match(number) or _LATE_SLASH.match(number) or _UNIT.match(text, start + len(number)):
            return False
        if len(digits) >= 9 and (has_prefix or number[0] == "(" or len(_GROUP.findall(number)) >= 3):
            return True
        return _CONTEXT.search(text[max(0, start - _CONTEXT_CHARACTERS) : start]) is not None


def _parts(match: re.Match[str]) -> Iterator[tuple[int, int]]:
    """The parts of a candidate that may each be a number: several can stand side by side."""
    start = match.start()
    for separator in _PARTS.finditer(match[0]):
        yield start, match.start() + separator.start()
        start = match.start() + separator.end()
    yield start, match.end()


def _is_valid(number: str, region: str | None) -> bool:
    library = _library()
    try:
        return bool(library.is_valid_number(library.parse(number, region)))
    except library.NumberParseException:
        return False
