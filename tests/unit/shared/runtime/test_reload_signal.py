"""SIGHUP is kept until the process can reload, and passed on afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from shared.runtime.reload_signal import ReloadSignal


@pytest.fixture
def reload_signal() -> Iterator[ReloadSignal]:
    before = signal.getsignal(signal.SIGHUP)
    reload_signal = ReloadSignal()
    reload_signal.install()
    yield reload_signal
    signal.signal(signal.SIGHUP, before)


def test_signals_before_connect_count_as_one(reload_signal: ReloadSignal) -> None:
    requests: list[None] = []
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    reload_signal.connect(lambda: requests.append(None))
    assert len(requests) == 1
    signal.raise_signal(signal.SIGHUP)
    assert len(requests) == 2
    reload_signal.disconnect()
    signal.raise_signal(signal.SIGHUP)
    assert len(requests) == 2
