"""Feedback about answers: the metric of thumbs, and the limits of what a row has."""

from __future__ import annotations

from enum import StrEnum

# The metric that thumbs are a value of. Its values are those of `Rating`; other metrics have any value.
RATING = "rating"
MAX_METRIC = 64
METRIC_PATTERN = r"^[A-Za-z0-9_.-]+$"
MAX_VALUE = 1000
# Larger numbers are not exact in JSON.
MAX_NUMBER = 2**53
MAX_COMMENT = 4000
MAX_CONVERSATION = 200
MAX_TAGS = 16
MAX_TAG = 64
# Values of an answer or of a conversation: of all metrics and authors, and those that a token can give.
MAX_OF_TARGET = 200
MAX_BY_TOKEN = 8


class Rating(StrEnum):
    """Thumbs."""

    UP = "up"
    DOWN = "down"


class FeedbackSource(StrEnum):
    """Who has given it: a client with a key, a browser with the answer's token, or somebody in the console."""

    KEY = "key"
    TOKEN = "token"  # noqa: S105
    CONSOLE = "console"
