"""International bank account numbers (IBAN, ISO 13616), with or without spaces, in upper or lower case."""

from __future__ import annotations

import re
from functools import cache

from shared.privacy.candidates import SEPARATOR, SEPARATORS, Span, replace_checked

SHORTEST = 15
# Numbers that are checked in a text.
MOST = 2000
# How long the numbers of each country are (SWIFT's registry), and of countries that use the form without being in it.
LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "DZ": 26, "EE": 20,
    "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27,
    "GT": 28, "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IR": 26, "IS": 26, "IT": 27, "JO": 30,
    "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MA": 28, "MC": 27,
    "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18,
    "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SN": 28, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26,
    "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
# The check digits, after two letters that no letter or digit precedes, and before enough characters. It begins with a
# digit, of which most texts have few.
_CANDIDATE = re.compile(
    rf"[0-9](?<=[A-Za-z]{{2}}[0-9])(?<![^\W_][A-Za-z]{{2}}[0-9])[0-9](?={SEPARATOR}?[A-Za-z0-9]{{2}})"
)
_ANY = re.compile(rf"[A-Za-z]{{2}}(?<![^\W_][A-Za-z]{{2}})[0-9]{{2}}[A-Za-z0-9{SEPARATORS}]{{11,38}}")
_ANY_SEPARATOR = re.compile(SEPARATOR)
# ISO 7064: letters count from 10.
_NUMBERS = {letter: str(number) for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10)}
_VALUES = str.maketrans(_NUMBERS)


@cache
def _rest_of(country: str) -> re.Pattern[str] | None:
    """The characters that follow the check digits of a country's numbers; None if it has none."""
    length = LENGTHS.get(country)
    if length is None:
        return None
    return re.compile(rf"(?:{SEPARATOR}?[A-Za-z0-9]){{{length - 4}}}(?![^\W_])")


def is_iban(number: str) -> bool:
    """Whether the checksum of a number without spaces, in upper case, is right: modulo 97 (ISO 7064)."""
    return int((number[4:] + number[:4]).translate(_VALUES)) % 97 == 1


def _check(match: re.Match[str]) -> Span:
    start, text = match.start() - 2, match.string
    rest = _rest_of(text[start : start + 2].upper())
    found = rest.match(text, match.end()) if rest is not None else None
    if found is None:
        return None
    number = _ANY_SEPARATOR.sub("", text[start : found.end()]).upper()
    return (start, found.end()) if is_iban(number) else None


def replace_ibans(text: str, placeholder: str) -> tuple[str, int]:
    """Replace IBANs; return the new text, and how many there were."""
    return replace_checked(text, _CANDIDATE, _check, placeholder, most=MOST, rest=_ANY)
