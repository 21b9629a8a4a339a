"""Generates what is to be found in texts, and what looks similar and is not to be found."""

from __future__ import annotations

import base64
import string
from collections.abc import Callable, Mapping, Sequence
from random import Random

from shared.domain.redaction_rules import RedactionKind

_ALPHANUMERIC = string.ascii_letters + string.digits
# Beginnings of cards' numbers and their lengths: Visa, Mastercard, American Express, Discover, JCB, Diners, UnionPay.
_CARDS = (
    ("4", 16), ("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("3530", 16),
    ("36", 14), ("62", 16), ("62", 19), ("4", 13),
)  # fmt: skip
_IBANS = {"en": ("GB", "IE"), "de": ("DE", "AT", "CH"), "fr": ("FR", "BE", "LU"), "es": ("ES",), "ja": ("GB", "NL")}
# What follows a country's check digits: n digits, a letters.
_FORMS = {
    "GB": "aaaannnnnnnnnnnnnn", "IE": "aaaannnnnnnnnnnnnn", "DE": "nnnnnnnnnnnnnnnnnn", "AT": "nnnnnnnnnnnnnnnn",
    "CH": "nnnnnnnnnnnnnnnnn", "FR": "nnnnnnnnnnnnnnnnnnnnnnn", "BE": "nnnnnnnnnnnn", "LU": "nnnnnnnnnnnnnnnn",
    "ES": "nnnnnnnnnnnnnnnnnnnn", "NL": "aaaannnnnnnnnn",
}  # fmt: skip
# d: any digit; D: 2 to 9.
_PHONES: Mapping[str, Sequence[str]] = {
    "en": (
        "(212) 5dd-dddd", "415-6dd-dddd", "+1 202 5dd dddd", "+1-312-7dd-dddd", "303.8dd.dddd", "020 7946 0ddd",
        "07700 900ddd", "+44 20 7946 0ddd", "+44 7911 12dddd", "(0161) 496 0ddd",
    ),
    "de": (
        "030 12dddddd", "0171 2dddddd", "+49 151 234ddddd", "+49 (0) 89 12dddddd", "089/32dddddd", "0049 170 3dddddd",
        "0221-47dddddd", "(040) 41ddddd", "+49301dddddd0", "0152 2dddddd1",
    ),
    "fr": (
        "06 12 dd dd dd", "01 42 dd dd dd", "+33 6 12 dd dd dd", "07.82.dd.dd.dd", "0033 1 44 dd dd dd",
        "+33142dddddd", "04-91-dd-dd-dd", "0612dddddd", "+33 (0)6 12 dd dd dd", "05 56 dd dd dd",
    ),
    "es": (
        "612 ddd ddd", "91 5dd dd dd", "+34 612 ddd ddd", "93 2dd dd dd", "654-ddd-ddd", "0034 91 5dd dd dd",
        "+34 655 dd dd dd", "+34912dddddd", "722 dd dd dd", "954 dd dd dd",
    ),
    "ja": (
        "090-1ddd-dddd", "03-3ddd-dddd", "+81 90 1ddd dddd", "080-5ddd-dddd", "06-6ddd-dddd", "+81-3-3ddd-dddd",
        "070-1ddd-dddd", "045-2dd-dddd", "０９０－１ddd－dddd", "+81901ddddddd",
    ),
}  # fmt: skip
_NAMES: Mapping[str, Sequence[str]] = {
    "en": ("john.smith", "emma_jones", "o.brien", "sam+shop", "t.lee99"),
    "de": ("anna.mueller", "j.schröder", "info", "k-h.weber", "lukas_80"),
    "fr": ("marie.dupont", "jean-luc", "contact", "a.lefèvre", "p.martin75"),
    "es": ("maria.garcia", "j.lopez", "ventas", "carlos_ruiz", "ana.n"),
    "ja": ("tanaka", "y.suzuki", "info", "sato_k", "hanako.ito"),
}
_DOMAINS: Mapping[str, Sequence[str]] = {
    "en": ("example.com", "mail.example.co.uk", "acme.io", "uni.edu"),
    "de": ("beispiel.de", "firma-gmbh.de", "müller.example", "post.at"),
    "fr": ("exemple.fr", "mail.societe.fr", "école.example", "orange.example.org"),
    "es": ("ejemplo.es", "correo.example.com", "tienda.com.mx", "empresa.es"),
    "ja": ("example.co.jp", "rei.example.jp", "kaisha.jp", "mail.example.com"),
}


# Digits that are as wide as letters, as Japanese keyboards have them.
_WIDE = str.maketrans(string.digits, "０１２３４５６７８９")


def _digits(random: Random, count: int) -> str:
    return "".join(random.choices(string.digits, k=count))


def _token(random: Random, count: int, alphabet: str = _ALPHANUMERIC) -> str:
    return "".join(random.choices(alphabet, k=count))


def luhn_digit(digits: str) -> str:
    """The digit that makes a number valid (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 == 0 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


def card_number(random: Random) -> str:
    """The number of a card, without separators."""
    prefix, length = random.choice(_CARDS)
    number = prefix + _digits(random, length - len(prefix) - 1)
    return number + luhn_digit(number)


def grouped_card(random: Random, number: str) -> str:
    """A card's number as people write it."""
    groups = {14: (4, 6, 4), 15: (4, 6, 5), 16: (4, 4, 4, 4), 19: (4, 4, 4, 4, 3)}.get(len(number))
    if groups is None or random.random() < 0.35:
        return number
    separator = random.choice("   --.\u00a0")
    parts, start = [], 0
    for size in groups:
        parts.append(number[start : start + size])
        start += size
    return separator.join(parts)


def iban_number(random: Random, country: str) -> str:
    """An IBAN without spaces."""
    account = "".join(
        random.choice(string.digits if kind == "n" else string.ascii_uppercase) for kind in _FORMS[country]
    )
    values = "".join(str(int(character, 36)) for character in f"{account}{country}00")
    return f"{country}{98 - int(values) % 97:02}{account}"


def _card(random: Random, _: str) -> str:
    return grouped_card(random, card_number(random))


def _iban(random: Random, language: str) -> str:
    number = iban_number(random, random.choice(_IBANS[language]))
    form = random.random()
    if form < 0.5:
        return " ".join(number[start : start + 4] for start in range(0, len(number), 4))
    return number.lower() if form < 0.55 else number


def _email(random: Random, language: str) -> str:
    return f"{random.choice(_NAMES[language])}{random.choice(('', '', _digits(random, 2)))}@" + random.choice(
        _DOMAINS[language]
    )


def _phone(random: Random, language: str) -> str:
    form = random.choice(_PHONES[language])
    number = "".join(random.choice(string.digits) if sign == "d" else sign for sign in form)
    return number.translate(_WIDE) if "０" in form else number


def _base64(random: Random, count: int) -> str:
    return base64.b64encode(random.randbytes(count)).decode()


def _jwt(random: Random) -> str:
    header, payload = (base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (
        b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"%d"}' % random.randrange(10**9)
    ))  # fmt: skip
    return f"{header}.{payload}.{_token(random, 43, _ALPHANUMERIC + '-_')}"


_SECRETS: Sequence[Callable[[Random], str]] = (
    lambda random: f"sk-proj-{_token(random, 48)}",
    lambda random: f"sk-ant-api03-{_token(random, 93, _ALPHANUMERIC + '-_')}AA",
    lambda random: f"hr_{_token(random, 8, '0123456789abcdef')}_{_token(random, 43, _ALPHANUMERIC + '-_')}",
    lambda random: f"AKIA{_token(random, 16, string.ascii_uppercase + string.digits)}",
    lambda random: f"ghp_{_token(random, 36)}",
    lambda random: f"github_pat_{_token(random, 22)}_{_token(random, 59)}",
    lambda random: f"glpat-{_token(random, 20, _ALPHANUMERIC + '-_')}",
    lambda random: f"xoxb-{_digits(random, 12)}-{_digits(random, 12)}-{_token(random, 24)}",
    lambda random: f"AIza{_token(random, 35, _ALPHANUMERIC + '-_')}",
    lambda random: f"sk_live_{_token(random, 24)}",
    lambda random: f"whsec_{_base64(random, 24)}",
    lambda random: f"hf_{_token(random, 34)}",
    lambda random: f"npm_{_token(random, 36)}",
    _jwt,
    lambda random: (
        f"-----BEGIN RSA PRIVATE KEY-----\n{_base64(random, 48)}\n{_base64(random, 30)}\n-----END RSA PRIVATE KEY-----"
    ),
)


def _secret(random: Random, _: str) -> str:
    return random.choice(_SECRETS)(random)


def _hard(random: Random, kind: RedactionKind, language: str) -> str:
    """A value as few people write it: some of these are not found."""
    value = VALUES[kind](random, language)
    match kind:
        case RedactionKind.CARD:
            return random.choice(("  ", "\n", "_")).join(card_number(random)[at : at + 4] for at in range(0, 16, 4))
        case RedactionKind.IBAN:
            return value.replace(" ", "\n", 1) if " " in value else f"{value[:2]} {value[2:]}"
        case RedactionKind.EMAIL:
            return value.replace("@", random.choice((" @ ", " (at) ", "[at]")))
        case RedactionKind.PHONE:
            return random.choice((f"212{_digits(random, 7)}", f"+45{_digits(random, 8)} w", f"{_digits(random, 6)}"))
        case RedactionKind.SECRET:
            return random.choice((_token(random, 32, "0123456789abcdef"), _base64(random, 30)))


# The share of the values that are written in a way that is hard to find.
HARD = 0.04
VALUES: Mapping[RedactionKind, Callable[[Random, str], str]] = {
    RedactionKind.CARD: _card,
    RedactionKind.IBAN: _iban,
    RedactionKind.EMAIL: _email,
    RedactionKind.PHONE: _phone,
    RedactionKind.SECRET: _secret,
}


def value_of(random: Random, kind: RedactionKind, language: str, hard: float) -> str:
    """A value of a kind, as it is written in texts of a language. `hard`: the share of those that are hard to find."""
    return _hard(random, kind, language) if random.random() < hard else VALUES[kind](random, language)


def password(random: Random) -> str:
    """A password as people choose them: found only beside a word such as `password`."""
    return random.choice(("Sommer", "hunter", "Pa$$w0rd", "correcthorse", "Tr0ub4dor&")) + _digits(random, 3)


def _wrong_card(random: Random) -> str:
    number = card_number(random)
    return grouped_card(random, number[:-1] + str((int(number[-1]) + 1 + random.randrange(9)) % 10))


def _wrong_iban(random: Random) -> str:
    number = iban_number(random, random.choice(("DE", "FR", "GB", "ES")))
    return f"{number[:2]}{(int(number[2:4]) + 1 + random.randrange(95)) % 97:02}{number[4:]}"


# What is not to be found.
OTHERS: Sequence[Callable[[Random], str]] = (
    _wrong_card,
    _wrong_card,
    _wrong_iban,
    lambda random: f"2026-{random.randint(1, 12):02}-{random.randint(1, 28):02}",
    lambda random: f"{random.randint(1, 28):02}.{random.randint(1, 12):02}.{random.randint(1970, 2030)}",
    lambda random: f"{random.randint(1, 28):02}/{random.randint(1, 12):02}/{random.randint(1970, 2030)} 14:30",
    lambda random: (
        f"{random.randint(10, 23)}:{random.randint(10, 59)}-{random.randint(10, 23)}:{random.randint(10, 59)}"
    ),
    lambda random: ".".join(str(random.randint(1, 254)) for _ in range(4)),
    lambda random: f"v{random.randint(0, 30)}.{random.randint(0, 30)}.{random.randint(0, 3000)}",
    lambda random: (
        f"{random.randint(1, 999)},{random.randint(100, 999)},{random.randint(100, 999)}.{random.randint(10, 99)}"
    ),
    lambda random: f"{random.randint(1, 999)} {random.randint(100, 999)} {random.randint(100, 999)} km",
    lambda random: f"#{_digits(random, random.randint(8, 12))}",
    lambda random: f"ORD-{_digits(random, 10)}",
    lambda random: f"SKU {_digits(random, 3)}-{_digits(random, 5)}",
    lambda random: f"ISBN 978-3-{_digits(random, 2)}-{_digits(random, 6)}-{_digits(random, 1)}",
    lambda random: "-".join(_token(random, size, "0123456789abcdef") for size in (8, 4, 4, 4, 12)),
    lambda random: _token(random, 40, "0123456789abcdef"),
    lambda random: "-".join(_token(random, size, "0123456789ABCDEF") for size in (8, 4, 4, 4, 12)),
    lambda random: f"job_{_token(random, 32, '0123456789abcdef')}",
    lambda random: _token(random, random.choice((16, 64)), "0123456789abcdef"),
    lambda random: f"0{_digits(random, 9)}-{_token(random, 1, string.ascii_uppercase)}{_digits(random, 2)}",
    lambda random: f"{_digits(random, 4)}-{_digits(random, 6)}-{_token(random, 2, string.ascii_uppercase)}",
    lambda random: f"1{_digits(random, 9)}",  # a time in seconds since 1970
    lambda random: f"{random.randint(-89, 89)}.{_digits(random, 6)}, {random.randint(-179, 179)}.{_digits(random, 6)}",
    lambda random: f"@user{_digits(random, 3)}",
    lambda random: "https://example.com/" + _token(random, 22),
    lambda random: f"max_tokens: {random.choice((256, 1024, 4096))}",
    lambda random: f"3.{_digits(random, 14)}",
    lambda random: f"{_digits(random, 2)}-{_digits(random, 3)}-{_digits(random, 3)}/{_digits(random, 2)}",
)
