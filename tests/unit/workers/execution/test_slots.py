"""Who may take an engine's slots."""

from __future__ import annotations

import pytest

from workers.execution.slots import Seats


def test_batches_take_what_others_leave() -> None:
    seats = Seats(4, yields=True)
    assert seats.take(batch=False)
    assert [seats.take(batch=True) for _ in range(4)] == [True, True, True, False]
    assert (seats.batch_room, seats.urgent_room) == (-1, 3)
    assert [seats.take(batch=False) for _ in range(4)] == [True, True, True, False]
    for batch in (True,) * 4 + (False,) * 5:
        seats.leave(batch=batch)
    assert (seats.batch_room, seats.urgent_room) == (4, 4)


@pytest.mark.parametrize(("slots", "for_batches"), [(1, 1), (2, 1), (8, 7), (256, 224)])
def test_where_jobs_are_not_set_aside_some_slots_are_kept_from_batches(slots: int, for_batches: int) -> None:
    seats = Seats(slots, yields=False)
    for _ in range(for_batches):
        assert seats.batch_room > 0
        seats.take(batch=True)
    assert seats.batch_room == 0
    assert seats.urgent_room == slots - for_batches
