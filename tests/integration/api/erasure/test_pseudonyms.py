"""The names of erased users in the audit log: the same for the same user, and nobody can confirm a guess."""

from __future__ import annotations

import hashlib

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.erasure.pseudonyms import SECRET, Pseudonyms
from api.erasure.store import ErasureStore
from api.feedback.tokens import SecretStore
from api.request_log.encryption import MasterKeys
from shared.domain.master_key import decode_master_key, generate_master_key
from shared.domain.owner import Owner
from shared.postgres.tables import SecretRow
from shared.postgres.usage_tables import AuditRow

OLD, NEW = generate_master_key(), generate_master_key()


def pseudonyms(database: AsyncEngine, key: str = "", previous: str = "") -> Pseudonyms:
    """Those of a process that has just started."""
    return Pseudonyms(MasterKeys.of(key, previous), SecretStore(database, SECRET))


async def secrets(database: AsyncEngine) -> list[str]:
    async with database.connect() as connection:
        return list((await connection.execute(select(SecretRow.name))).scalars())


async def test_a_user_has_one_name_and_each_user_another(database: AsyncEngine) -> None:
    (name,) = await pseudonyms(database, NEW).of(1, "ann")
    assert name.startswith("user_")
    assert await pseudonyms(database, NEW).of(1, "ann") == [name], "in all processes"
    others = [await pseudonyms(database, NEW).of(*of) for of in ((1, "bob"), (2, "ann"), (1, "Ann"))]
    assert len({name, *(other for (other,) in others)}) == 4
    assert await secrets(database) == [], "the database has no key"


async def test_no_digest_that_anybody_can_compute_confirms_a_guess(database: AsyncEngine) -> None:
    unkeyed = hashlib.sha256(b"1:ann").hexdigest()[:24]
    for key in (NEW, ""):
        (name,) = await pseudonyms(database, key).of(1, "ann")
        assert name != f"user_{unkeyed}"
    assert await pseudonyms(database, NEW).of(1, "ann") != await pseudonyms(database, OLD).of(1, "ann")
    assert decode_master_key(NEW) not in MasterKeys.of(NEW).derive("some purpose")


async def test_a_name_by_the_other_key_links_entries_while_the_master_key_is_replaced(database: AsyncEngine) -> None:
    (before,) = await pseudonyms(database, OLD).of(1, "ann")
    (after,) = await pseudonyms(database, NEW).of(1, "ann")
    assert await pseudonyms(database, OLD, NEW).of(1, "ann") == [before, after], "the first step of the rotation"
    assert await pseudonyms(database, NEW, OLD).of(1, "ann") == [after, before], "the second one"


async def test_without_a_master_key_the_key_is_a_secret_of_the_installation(database: AsyncEngine) -> None:
    (name,) = await pseudonyms(database).of(1, "ann")
    assert await pseudonyms(database).of(1, "ann") == [name]
    assert await secrets(database) == [SECRET]
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM secrets"))
    assert await pseudonyms(database).of(1, "ann") != [name]


async def test_the_audit_log_has_the_names(database: AsyncEngine, owner: Owner) -> None:
    store = ErasureStore(database)
    await store.record(owner.key_id, owner.project_id, "user_1", {"jobs": 1})
    await store.record(owner.key_id, owner.project_id, "user_1", {"jobs": 2}, ["user_2"])
    erased = select(AuditRow.object_id, AuditRow.after).where(AuditRow.action == "user.erase").order_by(AuditRow.id)
    async with database.connect() as connection:
        assert [tuple(row) for row in await connection.execute(erased)] == [
            ("user_1", {"jobs": 1}), ("user_1", {"jobs": 2, "also_named": ["user_2"]})
        ]  # fmt: skip
