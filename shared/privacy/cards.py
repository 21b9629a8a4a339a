"""Numbers of payment cards.

A candidate is a number without separators that is no fraction, one in the groups that are printed on cards, or one in
other groups if no other digits are beside it. It is a card's if a network issues numbers with its beginning and its
length, and if the last digit is the checksum of the others (Luhn, ISO/IEC 7812-1).
"""

from __future__ import annotations

import re

from shared.privacy.candidates import SEPARATOR, SEPARATORS, Span, replace_checked

SHORTEST = 13
# Numbers that are checked in a text.
MOST = 2000
_S = SEPARATOR
# The first character is a class, so that `re` skips to it quickly; what must not precede it is checked afterwards.
_CANDIDATE = re.compile(
    rf"[2-69](?<!\d[2-69])(?:(?<!\d\.[2-69])\d{{12,18}}(?!\d)"
    rf"|\d{{3}}({_S})(?:\d{{4}}\1\d{{4}}\1\d{{4}}(?!\d)|\d{{6}}\1\d{{4,5}}(?!\d))"
    rf"|(?<!\d{_S}[2-69])(?:{_S}?\d){{12,18}}(?!{_S}?\d))"
)
_ANY = re.compile(rf"\d[\d{SEPARATORS}]{{11,35}}(?<=\d)")
# A text without it has no candidate.
_LONG_ROW = re.compile(rf"[2-69][\d{SEPARATORS}]{{{SHORTEST - 1}}}")
_NO_DIGIT = re.compile(r"\D+")
# Beginnings of numbers, as ranges of the first six digits, and the lengths that exist of each: ISO/IEC 7812 and the
# networks' own tables.
_NETWORKS = (
    (220000, 220499, (16, 17, 18, 19)),  # Mir
    (222100, 272099, (16,)),  # Mastercard
    (300000, 305999, (14, 16, 19)),  # Diners Club
    (309500, 309599, (14, 16, 19)),
    (340000, 349999, (15,)),  # American Express
    (352800, 358999, (16, 17, 18, 19)),  # JCB
    (360000, 369999, (14, 15, 16, 17, 18, 19)),  # Diners Club
    (370000, 379999, (15,)),  # American Express
    (380000, 399999, (14, 16, 19)),  # Diners Club
    (400000, 499999, (13, 16, 19)),  # Visa
    (500000, 509999, (16, 17, 18, 19)),  # Maestro, Elo, Verve
    (510000, 559999, (16,)),  # Mastercard
    (560000, 589999, (16, 17, 18, 19)),  # Maestro
    (600000, 699999, (16, 17, 18, 19)),  # Discover, UnionPay, Maestro, RuPay
    (979200, 979289, (16,)),  # Troy
)
# Sums of the digits of each group of four, with every other one doubled. Groups are counted from the right.
_SUMS = {
    f"{number:04}": sum(
        digit if place % 2 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(map(int, f"{number:04}"))
    )
    for number in range(10_000)
}


def is_luhn_valid(digits: str) -> bool:
    """Whether the last of at most 20 ASCII digits is the checksum of the others."""
    padded = digits.zfill(20)
    sums = _SUMS
    total = sums[padded[:4]] + sums[padded[4:8]] + sums[padded[8:12]] + sums[padded[12:16]] + sums[padded[16:]]
    return total % 10 == 0


def is_card(digits: str) -> bool:
    """Whether ASCII digits have the prefix and the length of a card network, and a valid checksum."""
    first = int(digits[:6])
    length = len(digits)
    return any(low <= first <= high and length in lengths for low, high, lengths in _NETWORKS) and is_luhn_valid(digits)


def _check(match: re.Match[str]) -> Span:
    text = match[0]
    digits = _ascii(_NO_DIGIT.sub("", text))
    if len(digits) < len(text) and match[1] is None and not _is_grouped(text):
        return None
    if is_card(digits):
        return match.span()
    if len(digits) == len(text):
        return None
    if match[1] is not None:
        # The longest numbers have three more digits.
        more = _THREE_MORE.match(match.string, match.end())
        if more is not None and is_card(digits + _ascii(more[0][1:])):
            return match.start(), more.end()
        return None
    # Other groups: some at the beginning or at the end may be a date or a security code.
    groups = [found.span() for found in _GROUP.finditer(text)]
    before = 0
    for first, (start, _) in enumerate(groups):
        size = len(digits) - before
        for last in range(len(groups) - 1, first - 1, -1):
            if size < min(_PART):
                break
            if size in _PART and is_card(digits[before : before + size]):
                return match.start() + start, match.start() + groups[last][1]
            size -= groups[last][1] - groups[last][0]
        before += groups[first][1] - groups[first][0]
    return None


def _is_grouped(text: str) -> bool:
    """Whether digits are in groups, as people write them: not those of a fraction, and no single ones among others."""
    sizes = [len(group) for group in _GROUP.findall(text)]
    return not (len(sizes) == 2 and "." in text) and (min(sizes) > 1 or max(sizes) == 1)


_THREE_MORE = re.compile(rf"{_S}\d{{3}}(?!\d)")
# The lengths that are looked for in a longer row of digits: the usual ones, so that few are there by chance.
_PART = (14, 15, 16)
_GROUP = re.compile(r"\d+")


def _ascii(digits: str) -> str:
    return digits if digits.isascii() else "".join(str(int(digit)) for digit in digits)


def replace_cards(text: str, placeholder: str) -> tuple[str, int]:
    """Replace the numbers of cards; return the new text, and how many there were."""
    if _LONG_ROW.search(text) is None:
        return text, 0
    return replace_checked(text, _CANDIDATE, _check, placeholder, most=MOST, rest=_ANY)
