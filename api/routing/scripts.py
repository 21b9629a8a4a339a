"""Which scripts put spaces between words, as ranges of characters for regular expressions."""

from __future__ import annotations

import re

# Thai, Lao, Tibetan and Burmese; Khmer; Chinese, Japanese and Korean, whose particles follow words without a space.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u2e80-\U0010ffff"
SPACED = "\0-\u0dff\u10a0-\u177f\u1800-\u2e7f"

_IS_SPACED = re.compile(f"[{SPACED}]")


def is_spaced(character: str) -> bool:
    """Whether a character is of a script that puts spaces between words."""
    return _IS_SPACED.match(character) is not None
