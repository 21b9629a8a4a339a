"""Which jobs may take the slots of an engine."""

from __future__ import annotations

import pytest

from workers.execution.slots import SlotPool


def test_batch_jobs_get_the_slots_that_urgent_jobs_leave_free() -> None:
    slot_pool = SlotPool(4, yields=True)
    assert slot_pool.acquire(batch=False)
    assert [slot_pool.acquire(batch=True) for _ in range(4)] == [True, True, True, False]
    assert (slot_pool.batch_room, slot_pool.urgent_room) == (-1, 3)
    assert [slot_pool.acquire(batch=False) for _ in range(4)] == [True, True, True, False]
    for batch in (True,) * 4 + (False,) * 5:
        slot_pool.release(batch=batch)
    assert (slot_pool.batch_room, slot_pool.urgent_room) == (4, 4)


@pytest.mark.parametrize(("slots", "for_batches"), [(1, 1), (2, 1), (8, 7), (256, 224)])
def test_without_preemption_some_slots_are_reserved_for_urgent_jobs(slots: int, for_batches: int) -> None:
    slot_pool = SlotPool(slots, yields=False)
    for _ in range(for_batches):
        assert slot_pool.batch_room > 0
        slot_pool.acquire(batch=True)
    assert slot_pool.batch_room == 0
    assert slot_pool.urgent_room == slots - for_batches
