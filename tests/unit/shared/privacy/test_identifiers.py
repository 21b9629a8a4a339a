"""Identifiers have digits too: those of UUIDs, hashes and order numbers are no phone numbers, and no cards."""

from __future__ import annotations

import hashlib
import uuid
from random import Random

import pytest

from benchmarks.redaction.values import card_number, iban_number
from shared.privacy.identifiers import hide_identifiers, show_identifiers
from shared.privacy.redaction import Redactor

REDACTOR = Redactor()


def redacted(text: str) -> str:
    return REDACTOR.redact_text(text).text


@pytest.mark.parametrize(
    "identifier",
    [
        "08505063-f6bc-4e17-b9f7-88195b5cd438",
        "02549048-C2F3-49CF-8DC0-814A71FC7C04",
        "06275596-7393-0117-9045-80299284071b",
        "12345678-4111-1111-1111-111112345678",
        "65edda2f6ed8008c78eeb375003940773105de49",
        "e905a7431add66be35e194314492f572f2552975633080214d318531996783e9",
        "job_0192c7a84111111111111111cafe90c4",
        "0252288663-Y50",
        "0679-507088-ZC",
        "501-4650281-L378678",
        "07-1937-5830-218N",
        "06_12_34_56_78_ab",
    ],
)
@pytest.mark.parametrize("text", ["Call about {} please.", "phone: {}", "{}", '{{"id": "{}"}}', "Tel. {}, today"])
def test_identifiers_are_left(identifier: str, text: str) -> None:
    assert redacted(text.format(identifier)) == text.format(identifier)


@pytest.mark.parametrize("seed", range(20))
def test_no_random_identifier_is_changed(seed: int) -> None:
    random = Random(seed)
    found = [
        name
        for _ in range(200)
        for name in (
            str(uuid.UUID(int=random.getrandbits(128), version=4)),
            hashlib.sha256(random.randbytes(8)).hexdigest(),
        )
    ]
    text = "\n".join(found)
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("phone 0252288663 - Y50", "phone [PHONE] - Y50"),
        ("Call 415-555-2671, room A1", "Call [PHONE], room A1"),
        ("+49 30 1234567-Y50", "[PHONE]-Y50"),
        ("Call 415-555-2671-home now", "Call [PHONE]-home now"),
        ("030 12345678-Fax", "[PHONE]-Fax"),
        ("030 12345678-B\u00fcro", "[PHONE]-B\u00fcro"),
        ("DE89370400440532013000", "[IBAN]"),
        ("BE50674756851666 cafe", "[IBAN] cafe"),
        ("4111111111111111a", "[CARD]a"),
        ("Visa-4111-1111-1111-1111", "Visa-[CARD]"),
    ],
)
def test_numbers_beside_letters_are_found(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_numbers_beside_identifiers_are_found() -> None:
    random = Random(3)
    for _ in range(100):
        name = uuid.UUID(int=random.getrandbits(128), version=4)
        card, iban = card_number(random), iban_number(random, "DE")
        assert redacted(f"{name} {card} {name} +49 30 1234567 {iban}/{name}") == (
            f"{name} [CARD] {name} [PHONE] [IBAN]/{name}"
        )


def test_a_text_with_the_hidden_characters_is_searched_as_it_is() -> None:
    identifier = "08505063-f6bc-4e17-b9f7-88195b5cd438"
    assert hide_identifiers(f"\ue0f3 {identifier}") == f"\ue0f3 {identifier}"
    assert redacted(f"\ue0f3 4111111111111111 {identifier}").startswith("\ue0f3 [CARD] ")
    assert show_identifiers(hide_identifiers(f"the {identifier}")) == f"the {identifier}"
