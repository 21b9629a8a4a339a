"""The strictest of the levels of the request log wins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.errors import InvalidRequest
from shared.domain.log_level import (
    DEFAULT_LOG_LEVEL,
    LogLevel,
    level_to_store,
    require_log_key,
    stored_level,
    strictest,
)
from shared.domain.project_options import ProjectOptions

LEVELS = st.one_of(st.none(), st.sampled_from(LogLevel))
ORDER = ["none", "metadata", "redacted", "full"]


@given(st.lists(LEVELS))
def test_the_strictest_level_wins(levels: list[LogLevel | None]) -> None:
    """It is one of those that are set, none of them keeps less, and neither their order nor absent ones matter."""
    found = strictest(*levels)
    given_levels = [level for level in levels if level is not None]
    assert found in given_levels or (not given_levels and found is DEFAULT_LOG_LEVEL)
    assert all(ORDER.index(found) <= ORDER.index(level) for level in given_levels)
    assert strictest(*reversed(levels), None) is found
    if given_levels:
        assert strictest(*levels, LogLevel.NONE) is LogLevel.NONE
        assert strictest(*levels, LogLevel.FULL) is found


@given(LEVELS)
def test_a_row_has_the_level_unless_it_is_the_default(level: LogLevel | None) -> None:
    assert stored_level(level_to_store(level)) is (level or DEFAULT_LOG_LEVEL)


def test_most_rows_have_none() -> None:
    assert level_to_store(LogLevel.METADATA) is None


def test_a_level_of_a_newer_version_keeps_nothing() -> None:
    assert stored_level("hashed") is LogLevel.NONE
    assert ProjectOptions.read({"log_level": "hashed"}).log_level is LogLevel.NONE
    assert ProjectOptions.read({"log_level": "full", "redaction": 7}).log_level is LogLevel.NONE


def test_options_of_a_newer_version_are_ignored() -> None:
    assert ProjectOptions.read({"log_level": "full", "more": 1}) == ProjectOptions(log_level=LogLevel.FULL)
    assert ProjectOptions(log_level=LogLevel.FULL).stored() == {"log_level": "full"}
    assert ProjectOptions().stored() == {}


def test_bodies_need_a_key() -> None:
    for level in (None, LogLevel.NONE, LogLevel.METADATA):
        require_log_key(level, "level", has_key=False)
    for level in (LogLevel.REDACTED, LogLevel.FULL):
        require_log_key(level, "level", has_key=True)
        with pytest.raises(
            InvalidRequest, match=rf"^options.log_level: .*{level}.*HEADRACE_LOG_KEY.*generate-key"
        ) as error:
            require_log_key(level, "options.log_level", has_key=False)
        assert error.value.param == "options.log_level"
