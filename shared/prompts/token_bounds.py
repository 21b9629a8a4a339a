"""Bounds on the number of tokens of a text, found in a fraction of the time that it takes to encode it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

# A normalizer makes a text longer by at most this factor in UTF-8 (U+FDFA under NFKC).
MOST_EXPANSION = 11
# Characters of a text that are read for each token that it may have, and at most.
CHARACTERS_PER_TOKEN = 16
MOST_CHARACTERS = 256 * 1024

_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Bytes whose weights are added between two checks.
CHUNK = 4096
# Weights of bytes are multiples of 1 / _ONE, rounded down, so that each is a byte itself.
_ONE = 255

UnicodeForm = Literal["NFC", "NFD", "NFKC", "NFKD"]


@dataclass(frozen=True, slots=True)
class TokenBounds:
    """The bounds that follow from a byte-level vocabulary: the bytes of a text are those of its tokens, in order.

    `longest`: the bytes of the longest token. `words`: the most words, or parts of words, in a token. `weights`: for
    each byte, the share that it has of the longest token with this byte, so that no token weighs more than `_ONE`.
    """

    longest: int
    words: int
    weights: bytes

    def fewest(self, text: str, enough: int, start: int = 0) -> int:
        """A number of tokens that the text from a position on has at least.

        Not all of the text is read if the number cannot be, or is already, at least `enough`.
        """
        size = len(text) - start if text.isascii() else len(text[start:].encode("utf-8", "surrogatepass"))
        by_size = -(-size // self.longest)
        if by_size >= enough or size < enough:
            return by_size
        end = start + min(CHARACTERS_PER_TOKEN * enough, MOST_CHARACTERS)
        read = text[start:end].encode("utf-8", "surrogatepass")
        by_words = -(-len(read.split()) // self.words)
        if by_words >= enough:
            return by_words
        weight = 0
        for at in range(0, len(read), CHUNK):
            weight += sum(read[at : at + CHUNK].translate(self.weights))
            if weight >= enough * _ONE:
                break
        return max(by_size, by_words, -(-weight // _ONE))


def token_bounds(tokenizer: Tokenizer) -> TokenBounds | None:
    """The bounds for texts that no normalization changes; None if a token can stand for any number of bytes."""
    state = json.loads(tokenizer.to_str())
    steps = _steps(state)
    if (
        (state.get("normalizer") or {}).get("type") not in (None, *_FORMS)  # it may remove text
        or state["model"].get("type") != "BPE"
        or state["model"].get("unk_token") is not None
        or state.get("truncation") is not None
        or not all(step.get("type") in ("ByteLevel", "Digits") or _splits_only(step) for step in steps)
        or all(step.get("type") != "ByteLevel" for step in steps)
        or any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"])
    ):
        return None
    tokens = [*map(_bytes, state["model"]["vocab"]), *(token["content"].encode() for token in state["added_tokens"])]
    tokens = [token for token in tokens if token]
    if not tokens:
        return None
    return TokenBounds(max(map(len, tokens)), max(1, *(len(token.split()) for token in tokens)), _weights(tokens))


def unicode_forms(tokenizer: Tokenizer) -> Sequence[UnicodeForm]:
    """The Unicode normalizations of a tokenizer. They may make a text longer, as no other normalizer does."""
    return list(_forms(json.loads(tokenizer.to_str()).get("normalizer") or {}))


def is_normal(text: str, forms: Iterable[UnicodeForm]) -> bool:
    """Whether these normalizations leave a text as it is."""
    return text.isascii() or all(unicodedata.is_normalized(form, text) for form in forms)


def _forms(normalizer: dict[str, Any]) -> Iterator[UnicodeForm]:
    match normalizer.get("type"):
        case "NFC" | "NFD" | "NFKC" | "NFKD" as form:
            yield form
        case "Precompiled":  # of SentencePiece: NFKC, with or without changes to spaces and letters
            yield "NFKC"
        case "Sequence":
            for step in normalizer["normalizers"]:
                yield from _forms(step)


def _weights(tokens: Iterable[bytes]) -> bytes:
    longest = [1] * 256
    for token in sorted(tokens, key=len):
        for byte in set(token):
            longest[byte] = len(token)
    return bytes(_ONE // length for length in longest)


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    pre_tokenizer = state.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return steps


def _splits_only(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer splits the text without removing any of it."""
    return step.get("type") == "Split" and step.get("behavior") != "Removed"


def _byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies: printable ones for themselves."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_characters()


def _bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for."""
    return bytes(_BYTES[one] for one in token) if all(one in _BYTES for one in token) else token.encode()
