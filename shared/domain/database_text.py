"""Texts as PostgreSQL's `text` can have them."""

from __future__ import annotations


def storable(text: str) -> str:
    """Replace U+0000, which PostgreSQL refuses: no stored text has it, so a search for one that has finds nothing."""
    return text.replace("\0", "\ufffd")
