"""The level of a job comes from the installation, the project, the key and the request."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.keys.principal import Principal
from api.request_log.levels import LogLevels
from shared.domain.answer_options import KeyOptions, RequestOptions
from shared.domain.log_level import LogLevel, strictest
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.response import ResponseFacts

OWNER = Owner(1, 2)
LEVEL = st.sampled_from(LogLevel)
MAYBE = st.one_of(st.none(), LEVEL)


def level_of(
    installation: LogLevel = LogLevel.FULL,
    project: LogLevel | None = None,
    key: LogLevel | None = None,
    request: LogLevel | None = None,
    earlier: LogLevel | None = None,
    *,
    store: bool | None = None,
    response: ResponseFacts | None = None,
    has_key: bool = True,
) -> LogLevel | None:
    principal = replace(Principal.of(OWNER), options=KeyOptions(log_level=key), project_log_level=project)
    new = NewJob(
        OWNER, "m", 3, GenerateRequest(prompt="x"), options=RequestOptions(store=store, log_level=request),
        response=response, log_level=earlier,
    )  # fmt: skip
    return LogLevels(installation, has_key=has_key).apply(principal, new).log_level


@given(LEVEL, MAYBE, MAYBE, MAYBE, MAYBE)
def test_all_of_them_count(
    installation: LogLevel,
    project: LogLevel | None,
    key: LogLevel | None,
    request: LogLevel | None,
    earlier: LogLevel | None,
) -> None:
    levels = (installation, project, key, request, earlier)
    assert level_of(*levels) is strictest(*levels)
    assert level_of(*levels, store=True) is strictest(*levels)
    assert level_of(*levels, store=False) is LogLevel.NONE
    assert level_of(*levels, has_key=False) is strictest(*levels, LogLevel.METADATA)


@pytest.mark.parametrize("level", LogLevel)
def test_each_of_them_can_be_the_strictest(level: LogLevel) -> None:
    assert level_of(level) is level
    assert level_of(project=level) is level
    assert level_of(key=level) is level
    assert level_of(request=level) is level
    assert level_of(earlier=level) is level


def test_a_response_that_is_not_stored_is_not_logged() -> None:
    assert level_of(response=ResponseFacts({}, [], stored=False)) is LogLevel.NONE
    assert level_of(response=ResponseFacts({}, [], stored=True)) is LogLevel.FULL
