"""Secrets of webhooks and their rotation."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime, timedelta

from standardwebhooks import Webhook

from api.webhooks.secrets import (
    MAX_SECRETS,
    Secret,
    new_secret,
    old_secret_expires_at,
    read_secrets,
    rotated,
    to_stored,
)

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_secret_is_one_of_standard_webhooks() -> None:
    secret = new_secret()
    assert secret.startswith("whsec_")
    assert len(b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", now, "{}"),
    }
    assert Webhook(secret).verify("{}", headers) == {}
    assert new_secret() != secret


def test_the_old_secret_signs_for_the_overlap() -> None:
    first = (Secret("a"),)
    second = rotated(first, "b", NOW, 3600)
    assert second == (Secret("b"), Secret("a", NOW + HOUR))
    assert rotated(first, "b", NOW, 0) == (Secret("b"),)


def test_a_further_rotation_prolongs_no_secret() -> None:
    second = rotated((Secret("a"),), "b", NOW, 3600)
    third = rotated(second, "c", NOW + HOUR / 2, 24 * 3600)
    assert third == (Secret("c"), Secret("b", NOW + HOUR / 2 + 24 * HOUR), Secret("a", NOW + HOUR))
    fourth = rotated(third, "d", NOW + HOUR, 24 * 3600)
    assert [one.secret for one in fourth] == ["d", "c", "b"], "the first one has expired"


def test_few_secrets_sign_at_once() -> None:
    found: tuple[Secret, ...] = (Secret("0"),)
    for number in range(1, 6):
        found = rotated(found, str(number), NOW, 24 * 3600)
    assert [one.secret for one in found] == ["5", "4", "3"]
    assert len(found) == MAX_SECRETS


def test_secrets_are_stored_and_read() -> None:
    found = (Secret("b"), Secret("a", NOW))
    assert read_secrets(to_stored(found)) == found
    assert to_stored(found)[0] == {"secret": "b", "expires_at": None}


def test_only_a_secret_that_still_signs_is_shown_as_the_old_one() -> None:
    later = datetime.now(UTC) + HOUR
    assert old_secret_expires_at((Secret("b"), Secret("a", later))) == later
    assert old_secret_expires_at((Secret("b"), Secret("a", NOW - timedelta(days=400)))) is None
