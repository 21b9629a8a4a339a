"""Tokens for feedback: who can make one, for what, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.feedback.tokens import FeedbackTokens, SecretStore
from shared.domain.errors import Unauthorized
from shared.domain.ids import new_id
from shared.domain.job import JOB_ID_PREFIX

TTL_S = 60
NOW = 1_796_000_000.5


class Secrets(SecretStore):
    """Has a secret without a database."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    async def secret(self) -> bytes:
        return self.value


class Clock:
    """A clock that a test sets."""

    now = NOW

    def __call__(self) -> float:
        return self.now


async def tokens(secret: bytes = b"s" * 32, ttl_s: int = TTL_S, clock: Clock | None = None) -> FeedbackTokens:
    made = FeedbackTokens(Secrets(secret), ttl_s, clock or Clock())
    await made.load()
    return made


def job_id(region: str = "") -> str:
    return new_id(JOB_ID_PREFIX, region)


async def a_token(of: FeedbackTokens, job: str) -> str:
    token = of.token_of(job)
    assert token is not None
    return token


@pytest.mark.parametrize("region", ["", "eu", "a123456789012345"])
async def test_a_token_is_for_its_job(region: str) -> None:
    job, clock = job_id(region), Clock()
    signer = await tokens(clock=clock)
    token = await a_token(signer, job)
    assert signer.job_of(token) == job
    assert token.isascii()
    assert len(token) < 120
    clock.now = NOW + TTL_S - 1
    assert signer.job_of(token) == job
    clock.now = NOW + TTL_S
    with pytest.raises(Unauthorized, match="expired"):
        signer.job_of(token)


async def test_other_processes_with_the_secret_take_it() -> None:
    job = job_id()
    token = await a_token(await tokens(), job)
    assert (await tokens()).job_of(token) == job
    with pytest.raises(Unauthorized, match="not valid"):
        (await tokens(b"t" * 32)).job_of(token)


async def test_a_secret_that_was_deleted_makes_tokens_invalid() -> None:
    store = Secrets(b"s" * 32)
    signer = FeedbackTokens(store, TTL_S, Clock())
    assert signer.token_of(job_id()) is None, "before the secret was read"
    await signer.load()
    token = await a_token(signer, job_id())
    store.value = b"t" * 32
    await signer.load()
    with pytest.raises(Unauthorized):
        signer.job_of(token)


async def test_tokens_can_be_turned_off() -> None:
    token = await a_token(await tokens(), job_id())
    off = await tokens(ttl_s=0)
    assert off.token_of(job_id()) is None
    with pytest.raises(Unauthorized):
        off.job_of(token)


async def test_no_part_of_a_token_can_be_exchanged() -> None:
    signer = await tokens()
    token, second = await a_token(signer, job_id()), job_id()
    job, expires, signature = token.split(".")
    for forged in (
        f"{second}.{expires}.{signature}",
        f"{job}.{int(expires) + 1}.{signature}",
        f"{job}.0{expires}.{signature}",
        f"{job}.{expires}.{signature[::-1]}",
        f"{job}.{expires}.{signature[:-1]}",
        f"{job}.{expires}.{signature}=",
        f"{job}.{expires}",
        f" {token}",
        f"{token}\n",
        token.upper(),
        "",
        "." * 200,
        "x" * 100_000,
    ):
        with pytest.raises(Unauthorized):
            signer.job_of(forged)


@settings(max_examples=200, deadline=None)
@given(st.data())
async def test_no_changed_token_is_valid(data: st.DataObject) -> None:
    signer = await tokens()
    token = await a_token(signer, "job_" + "0" * 32)
    place = data.draw(st.integers(0, len(token) - 1))
    changed = token[:place] + data.draw(st.text(max_size=2)) + token[place + 1 :]
    if changed == token:
        return
    with pytest.raises(Unauthorized):
        signer.job_of(changed)
