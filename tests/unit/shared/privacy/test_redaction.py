"""What redaction finds in texts, and what it leaves."""

from __future__ import annotations

import re
import subprocess
import sys
from random import Random
from urllib.parse import quote

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.redaction.values import OTHERS, VALUES, card_number, grouped_card, iban_number, luhn_digit
from shared.domain.redaction_rules import PHONE_REGIONS, OwnRule, RedactionKind, RedactionRules
from shared.privacy.cards import is_luhn_valid
from shared.privacy.ibans import is_iban
from shared.privacy.redaction import Redactor

REDACTOR = Redactor()
CARD = "4111 1111 1111 1111"


def redacted(text: str) -> str:
    return REDACTOR.redact_text(text).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Card {CARD}, thanks", "Card [CARD], thanks"),
        ("4111111111111111", "[CARD]"),
        ("4111-1111-1111-1111 12/29 123", "[CARD] 12/29 123"),
        ("3782 822463 10005", "[CARD]"),
        ("41111111 11111111", "[CARD]"),
        ("card:4111.1111.1111.1111.", "card:[CARD]."),
        ("４１１１１１１１１１１１１１１１", "[CARD]"),
        ("My IBAN is DE89 3704 0044 0532 0130 00 here", "My IBAN is [IBAN] here"),
        ("gb29nwbk60161331926819", "[IBAN]"),
        ("FR1420041010050500013M02606", "[IBAN]"),
        ("a DE89370400440532013000 GB29NWBK60161331926819", "a [IBAN] [IBAN]"),
        ("Write to jane.doe+x@mail.example.co.uk!", "Write to [EMAIL]!"),
        ("<j.schröder@müller.de>", "<[EMAIL]>"),
        ("mailto:a@b.de?subject=x", "mailto:[EMAIL]?subject=x"),
        ("Call +49 (0)30 901820 now", "Call [PHONE] now"),
        ("Tel.: 030 901820", "Tel.: [PHONE]"),
        ("call (212) 555-0123 or 415-555-2671", "call [PHONE] or [PHONE]"),
        ("06 12 34 56 78", "[PHONE]"),
        ("+34 612 34 56 78 / +34 91 234 56 78", "[PHONE] / [PHONE]"),
        ("key sk-proj-abcdEFGH1234ijklMNOP5678", "key [SECRET]"),
        (f"hr_0123abcd_{'A1' * 21}b", "[SECRET]"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        ("Authorization: Bearer abc123def456ghi789", "Authorization: Bearer [SECRET]"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic [SECRET]"),
        ("password: hunter2!", "password: [SECRET]"),
        ('{"api_key": "abcd1234efgh"}', '{"api_key": "[SECRET]"}'),
        ("postgresql://user:pa55@host/db", "postgresql://[SECRET]@host/db"),
        ("x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.abc-_123 y", "x [SECRET] y"),
        (
            "-----BEGIN PRIVATE KEY-----\nMIIEvQ+/=\nabc\n-----END PRIVATE KEY-----\nrest",
            "[SECRET]\nrest",
        ),
        # Escapes of JSON, of which a letter is beside what follows.
        (r"log: \n+49 30 901820", "log: \n[PHONE]"),
        (r"a\tsk-proj-abcdEFGH1234ijklMNOP5678", "a\t[SECRET]"),
        (r"{\"to\": \"ann\u0040b.de\"", '{"to": "[EMAIL]"'),
        (r"\\r\\nGB29NWBK60161331926819", "\r\n[IBAN]"),
        (r"https:\/\/user:pa55@host\/", "https://[SECRET]@host/"),
        (r"{\"password\": \"hunter2!\"", '{"password": "[SECRET]"'),
        # Escapes of URLs and forms, also of URLs within others.
        ("ann%40x.com", "[EMAIL]"),
        ("GET /?to=ann%2Btag%40mail.example.com&n=1 HTTP/1.1", "GET /?to=[EMAIL]&n=1 HTTP/1.1"),
        ("to=ann%40x.com%2Cbob%40y.org%3B", "to=[EMAIL],[EMAIL];"),
        ("?next=%2Flogin%3Femail%3Dann%2540x.com", "?next=/login?email=[EMAIL]"),
        ("?u=https%253A%252F%252Fa.example%252F%253Fq%253Dann%252540x.com", "?u=https://a.example/?q=[EMAIL]"),
        ("bob@y.org or ann%40x.com", "[EMAIL] or [EMAIL]"),
        ("tel%3A%2B49%2030%20901820", "tel:[PHONE]"),
        ("iban=DE89%203704%200044%200532%200130%2000", "iban=[IBAN]"),
        ("password%3dhunter2%21", "password=[SECRET]"),
    ],
)
def test_what_is_found(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # the checksum is wrong
        "1234567812345670",  # no network has this beginning
        "44111111111111111144",  # a longer number
        "DE88 3704 0044 0532 0130 00",
        "2026-11-30 18:05, 30.11.2026, 11/30/2026",
        "192.168.100.200",
        "order 1234567890 of 2026",
        "550e8400-e29b-41d4-a716-446655440000",
        "3.14159265358979",
        "0.78146688, -0.4587128341 and [0.175864408 0.003911 0.12]",
        "1,234,567.89 and 12 345 678 km",
        "@user and a@b",
        "risk-adjusted-returns-are-high task-force",
        "password: required",
        "token = secrets.token_hex(16)",
        "token = tokens[i+1]",
        "secret: SecretStr | None = Field(max_length=32)",
        "api_key = request.headers.get('x-api-key', keys[0])",
        "the bearer acknowledgement",
        "max_tokens: 4096",
        "v1.20.300",
        r"C:\new\users \d+ \u00e9 \ud83d \\host\n \"quoted\"",
        "https://a.example/a%20b%2Fc?q=50%25%20off%2C%20at%40noon&r=%5B%5D%zz%",
    ],
)
def test_what_is_left(text: str) -> None:
    result = REDACTOR.redact_text(text)
    assert (result.text, result.counts) == (text, {})


def test_what_was_found_is_counted_by_kind() -> None:
    result = REDACTOR.redact_text(f"{CARD} a@b.de, {CARD} c@d.de, {CARD}")
    assert result.counts == {"card": 3, "email": 2}


def test_kinds_can_be_left_out() -> None:
    only_mail = Redactor(RedactionRules(kinds=(RedactionKind.EMAIL,)))
    assert only_mail.redact_text(f"{CARD} a@b.de").text == f"{CARD} [EMAIL]"


def test_numbers_without_a_country_code_are_those_of_the_regions() -> None:
    swiss = Redactor(RedactionRules(phone_regions=("CH",)))
    assert swiss.redact_text("044 668 18 00").text == "[PHONE]"
    none = Redactor(RedactionRules(phone_regions=()))
    assert none.redact_text("044 668 18 00, +41 44 668 18 00").text == "044 668 18 00, [PHONE]"


def test_own_rules() -> None:
    rules = RedactionRules(
        own=(
            OwnRule(name="codename", words=("Project Falcon", "straße", "C++")),
            OwnRule(name="employee_id", pattern=r"(?i)\bE-[0-9]{6}\b"),
        )
    )
    text = "PROJECT FALCON, falconry, Straße, Straßen, c++, e-123456, E-1234567 and a@b.de"
    result = Redactor(rules).redact_text(text)
    assert result.text == (
        "[CODENAME], falconry, [CODENAME], Straßen, [CODENAME], [EMPLOYEE_ID], E-1234567 and [EMAIL]"
    )
    assert result.counts == {"codename": 3, "employee_id": 1, "email": 1}


def test_own_rules_do_not_change_placeholders() -> None:
    redactor = Redactor(RedactionRules(own=(OwnRule(name="words", words=("card", "words", "email")),)))
    once = redactor.redact_text(f"My card {CARD} and email").text
    assert once == "My [WORDS] [CARD] and [WORDS]"
    assert redactor.redact_text(once).text == once


def test_a_match_of_an_own_pattern_can_be_anywhere_in_a_long_text() -> None:
    redactor = Redactor(RedactionRules(kinds=(), own=(OwnRule(name="id", pattern="E-[0-9]{6}"),)))
    text = "".join("E-123456" + "x" * gap for gap in range(300))
    assert redactor.redact_text(text).text == text.replace("E-123456", "[ID]")


def test_a_table_of_numbers_is_removed_without_checks_after_the_first() -> None:
    text = "4111 1111 1111 1112, " * 3000
    result = REDACTOR.redact_text(text)
    assert result.text.startswith(text[:2000]), "the first ones are checked"
    assert result.text.endswith("[CARD], " * 900)


@pytest.mark.parametrize("local", ["ann", "ann.b", "a_b-c", "ann+x"])
@pytest.mark.parametrize("nested", [1, 2, 3])
def test_no_escaped_address_is_left(local: str, nested: int) -> None:
    address = f"{local}@mail.example.com"
    for _ in range(nested):
        address = quote(address, safe="")
    assert redacted(f"https://a.example/?to={address}&x=1") == "https://a.example/?to=[EMAIL]&x=1"


SEEDS = st.integers(min_value=0, max_value=2**32)
# Around a value: what is not a part of a number or a name.
AROUND = st.text(alphabet="abc XYZ,;:()\n'\"äß€日", max_size=20)


@given(SEEDS, AROUND, AROUND)
def test_no_valid_card_is_left(seed: int, before: str, after: str) -> None:
    random = Random(seed)
    number = card_number(random)
    text = redacted(f"{before} {grouped_card(random, number)} {after}")
    assert number not in re.sub(r"\D", "", text)


@given(SEEDS, AROUND, AROUND)
def test_no_valid_iban_is_left(seed: int, before: str, after: str) -> None:
    random = Random(seed)
    number = iban_number(random, random.choice(("DE", "GB", "FR", "ES", "NL", "BE")))
    grouped = " ".join(number[start : start + 4] for start in range(0, len(number), 4))
    for written in (number, grouped, number.lower()):
        assert number[4:] not in re.sub(r"\s", "", redacted(f"{before} {written} {after}")).upper()


@given(
    st.lists(
        st.one_of(SEEDS.map(lambda seed: _value(seed)), SEEDS.map(lambda seed: quote(_value(seed))), AROUND), max_size=8
    )
)
def test_redacting_again_changes_nothing(parts: list[str]) -> None:
    once = redacted(" ".join(parts))
    again = REDACTOR.redact_text(once)
    assert (again.text, again.counts) == (once, {})


@given(st.text(max_size=300))
def test_any_text_can_be_redacted(text: str) -> None:
    result = REDACTOR.redact_text(text)
    assert (result.text == text) == (not result.counts)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.\n!?", max_size=500))
def test_a_text_without_findings_is_unchanged(text: str) -> None:
    assert redacted(text) == text


def _value(seed: int) -> str:
    random = Random(seed)
    if random.random() < 0.3:
        return random.choice(OTHERS)(random)
    kind = random.choice(tuple(RedactionKind))
    return VALUES[kind](random, random.choice(("en", "de", "fr", "es", "ja")))


@given(st.text(alphabet="0123456789", min_size=11, max_size=18))
def test_luhn(digits: str) -> None:
    check = luhn_digit(digits)
    assert [str(digit) for digit in range(10) if is_luhn_valid(f"{digits}{digit}")] == [check]


@pytest.mark.parametrize("number", ["DE89370400440532013000", "GB29NWBK60161331926819", "NO9386011117947"])
def test_ibans_of_the_registry(number: str) -> None:
    assert is_iban(number)
    assert not is_iban(f"{number[:-1]}{(int(number[-1]) + 1) % 10}")


def test_regions_are_those_of_the_library() -> None:
    assert set(phonenumbers.SUPPORTED_REGIONS) == PHONE_REGIONS


def test_the_library_of_phone_numbers_is_loaded_when_it_is_needed() -> None:
    program = "import sys, shared.privacy.redaction; print('phonenumbers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
