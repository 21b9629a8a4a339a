"""Bodies are encrypted with the data key of their day, and data keys with a master key."""

from __future__ import annotations

import base64
import zlib
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.request_log import encryption
from api.request_log.encryption import (
    Cipher,
    DecryptionFailed,
    MasterKeys,
    UnknownMasterKey,
    master_id,
    new_data_key,
    seal,
    unseal,
)
from shared.domain.master_key import decode_master_key, generate_master_key

DAY, NEXT_DAY = date(2026, 11, 30), date(2026, 12, 1)
CIPHER = Cipher(b"k" * 32)


@given(st.binary(max_size=5000))
def test_a_body_is_read_back(body: bytes) -> None:
    assert unseal(CIPHER, "job_1", seal(CIPHER, "job_1", body)) == body


def test_a_body_is_compressed_and_each_time_another_ciphertext() -> None:
    body = b"a prompt with a secret " * 100
    one, other = seal(CIPHER, "job_1", body), seal(CIPHER, "job_1", body)
    assert len(one) < len(body) / 10
    assert one != other
    assert b"secret" not in one


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_body_is_refused(position: int, change: int) -> None:
    sealed = bytearray(seal(CIPHER, "job_1", b"some text"))
    sealed[position % len(sealed)] ^= change
    with pytest.raises(DecryptionFailed):
        unseal(CIPHER, "job_1", bytes(sealed))


@pytest.mark.parametrize("length", [0, 1, 11, 12, 27])
def test_a_cut_body_is_refused(length: int) -> None:
    with pytest.raises(DecryptionFailed):
        unseal(CIPHER, "job_1", seal(CIPHER, "job_1", b"some text")[:length])


def test_a_body_is_that_of_its_job_and_of_its_key() -> None:
    sealed = seal(CIPHER, "job_1", b"some text")
    with pytest.raises(DecryptionFailed, match="job_2"):
        unseal(CIPHER, "job_2", sealed)
    with pytest.raises(DecryptionFailed):
        unseal(Cipher(b"j" * 32), "job_1", sealed)


def test_a_body_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "MAX_BODY_BYTES", 1000)
    assert unseal(CIPHER, "job_1", seal(CIPHER, "job_1", b"x" * 1000)) == b"x" * 1000
    for compressed in (zlib.compress(b"x" * 1001), zlib.compress(b"x" * 100)[:-5], b"no zlib"):
        with pytest.raises(DecryptionFailed):
            unseal(CIPHER, "job_1", CIPHER.encrypt(compressed, "job_1"))


def test_data_keys_are_read_with_their_master_key_only() -> None:
    old, new = generate_master_key(), generate_master_key()
    data_key = new_data_key()
    master, wrapped = MasterKeys.of(old).wrap(data_key, DAY)
    assert data_key not in wrapped
    assert MasterKeys.of(old).unwrap(master, wrapped, DAY) == data_key
    rotating = MasterKeys.of(new, old)
    assert rotating.unwrap(master, wrapped, DAY) == data_key
    assert rotating.wrap(data_key, DAY)[0] == rotating.current == master_id(decode_master_key(new)) != master
    with pytest.raises(UnknownMasterKey, match=master):
        MasterKeys.of(new).unwrap(master, wrapped, DAY)
    with pytest.raises(DecryptionFailed, match="2026-12-01"):
        MasterKeys.of(old).unwrap(master, wrapped, NEXT_DAY)


def test_without_a_master_key_nothing_is_encrypted() -> None:
    masters = MasterKeys.of("")
    assert not masters
    with pytest.raises(UnknownMasterKey, match="HEADRACE_LOG_KEY"):
        masters.wrap(new_data_key(), DAY)


def test_the_id_of_a_master_key_does_not_reveal_it() -> None:
    key = decode_master_key(generate_master_key())
    assert len(master_id(key)) == 16
    assert key.hex()[:16] != master_id(key)


@pytest.mark.parametrize(
    "text", ["", "x", "not base64!", base64.b64encode(b"k" * 31).decode(), base64.b64encode(b"k" * 33).decode()]
)
def test_a_master_key_has_32_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="base64 of 32 bytes") as error:
        decode_master_key(text)
    assert not text or text not in str(error.value), "it may be a key"


def test_a_generated_key_can_be_used() -> None:
    assert len(decode_master_key(generate_master_key())) == 32
    assert generate_master_key() != generate_master_key()
