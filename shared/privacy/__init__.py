"""Redaction: finds what identifies people or grants access in texts, and replaces it. Pure: no I/O, no state."""
