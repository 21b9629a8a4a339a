"""Encrypts the bodies of the request log with data keys, and the data keys with a master key.

There is a data key per day. Its row has it encrypted ("wrapped") with a master key, which only the environment has. So
a master key is replaced by wrapping the data keys again, without touching bodies; and once the row of a day's key is
deleted, nothing of that day can be read any more, not even in backups of the bodies.

Everything is encrypted with AES-256-GCM: a nonce of 12 random bytes, then the ciphertext with its tag. What a
ciphertext belongs to is authenticated with it, so that no body can be shown as that of another job, and no data key as
that of another day. Bodies are compressed before.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from shared.domain.master_key import KEY_BYTES, decode_master_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
# Faster than the default, which makes texts only a little smaller.
COMPRESSION = 3
# No more is decompressed: a body that was changed must not fill the memory. Larger than any request and its answer.
MAX_BODY_BYTES = 1024**3


class DecryptionFailed(Exception):
    """A ciphertext was changed, or does not belong to this key, or to this job or day."""


class UnknownMasterKey(Exception):
    """A data key is encrypted with a master key that this process does not have."""


class Cipher:
    """Encrypts with one key."""

    def __init__(self, key: bytes) -> None:
        # Loading OpenSSL takes a tenth of a second, which only those who keep bodies should pay.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher: AESGCM = AESGCM(key)

    def encrypt(self, text: bytes, owner: str) -> bytes:
        """Encrypt; `owner`, what the text belongs to, has to be given again to decrypt it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text, owner.encode())

    def decrypt(self, encrypted: bytes, owner: str) -> bytes:
        """Decrypt what `encrypt` has returned.

        Raises:
            DecryptionFailed: it was changed, or belongs to another key or owner.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(encrypted[:NONCE_BYTES], encrypted[NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError) as error:
            raise DecryptionFailed(f"of {owner}") from error


class MasterKeys:
    """The master keys of a process. The first one encrypts new data keys; all of them decrypt."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)
        self._ciphers = {master_id(key): Cipher(key) for key in keys}
        self.current = next(iter(self._ciphers), None)

    @classmethod
    def of(cls, key: str, previous: str = "") -> MasterKeys:
        """The keys in HEADRACE_LOG_KEY and HEADRACE_LOG_KEY_PREVIOUS; an empty text is none."""
        return cls([decode_master_key(text) for text in (key, previous) if text])

    def __bool__(self) -> bool:
        return self.current is not None

    def derive(self, purpose: str) -> list[bytes]:
        """A key of each master key for another purpose, the current one's first. They do not reveal the master keys."""
        return [hmac.new(key, purpose.encode(), hashlib.sha256).digest() for key in self._keys]

    def knows(self, master: str) -> bool:
        """Whether data keys of the master key with this id can be decrypted."""
        return master in self._ciphers

    def wrap(self, data_key: bytes, day: date) -> tuple[str, bytes]:
        """Encrypt the data key of a day with the current master key; return that key's id, and the wrapped key."""
        if self.current is None:
            raise UnknownMasterKey("there is no master key: HEADRACE_LOG_KEY")
        return self.current, self._ciphers[self.current].encrypt(data_key, _key_owner(day))

    def unwrap(self, master: str, wrapped: bytes, day: date) -> bytes:
        """Decrypt the data key of a day.

        Raises:
            UnknownMasterKey: it was encrypted with another master key.
            DecryptionFailed: it was changed, or is that of another day.
        """
        if master not in self._ciphers:
            raise UnknownMasterKey(f"the data key of {day} is encrypted with the master key {master}")
        return self._ciphers[master].decrypt(wrapped, _key_owner(day))


def master_id(key: bytes) -> str:
    """Identifies a master key without revealing it."""
    return hmac.new(key, b"headrace request log: master key id", hashlib.sha256).hexdigest()[:16]


def new_data_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def seal(cipher: Cipher, job_id: str, body: bytes) -> bytes:
    """Compress and encrypt the body of a job."""
    return cipher.encrypt(zlib.compress(body, COMPRESSION), job_id)


def unseal(cipher: Cipher, job_id: str, sealed: bytes) -> bytes:
    """The body that `seal` has compressed and encrypted.

    Raises:
        DecryptionFailed: as `Cipher.decrypt`; or it is not compressed, or too large.
    """
    compressed = cipher.decrypt(sealed, job_id)
    decompressor = zlib.decompressobj()
    try:
        body = decompressor.decompress(compressed, MAX_BODY_BYTES)
    except zlib.error as error:
        raise DecryptionFailed(f"of {job_id}: it is not compressed") from error
    if not decompressor.eof:
        raise DecryptionFailed(f"of {job_id}: it is too large, or cut")
    return body


def _key_owner(day: date) -> str:
    return f"data key of {day.isoformat()}"
