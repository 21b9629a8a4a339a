"""API keys as an operator manages them, with `python -m api.keys`, and the rows that result."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.__main__ import main
from api.keys.auth import Authenticator
from api.keys.earlier_work import EarlierWork
from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore
from api.keys.valid_keys import ValidKey
from shared.domain.answer_options import KeyOptions, TokenLimits
from shared.domain.errors import Forbidden, Unauthorized, UnreadableRow
from shared.domain.log_level import LogLevel
from shared.domain.master_key import generate_master_key
from tests.support.stack import REPOSITORY
from tests.support.waiting import eventually

Keys = Callable[..., subprocess.CompletedProcess[str]]
CHOSEN = "a-key-that-an-operator-chose"


@pytest.fixture
def keys(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Runs the command on a fresh database, in this process, because starting one takes a second."""
    monkeypatch.setenv("DATABASE_URL", database_url)

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            for name, value in settings.items():
                patch.setenv(name, value)
            with ThreadPoolExecutor(1) as thread:  # the test's own event loop may be running
                code = thread.submit(_exit_code, arguments).result(60)
        return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())

    return run


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


def test_the_command_runs_as_a_module(database_url: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "api.keys", "create", "laptop"],
        env={**os.environ, "DATABASE_URL": database_url},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout[:3]) == (0, "hr_")


def prefix(key: str) -> str:
    return "_".join(key.split("_")[:2])


def key_id(keys: Keys, key: str) -> str:
    """The id of a generated key, as `list` shows it."""
    (found,) = [line.split()[0] for line in keys("list").stdout.splitlines() if f" {prefix(key)} " in line]
    return found


async def stored(database: AsyncEngine) -> str:
    """The rows of the table, as text."""
    async with database.connect() as connection:
        rows = await connection.execute(text("SELECT api_keys::text FROM api_keys ORDER BY id"))
        return "\n".join(row[0] for row in rows)


async def principal(database: AsyncEngine, key: str) -> Principal:
    found = await ApiKeyStore(database).find(key)
    assert found is not None
    return found.principal


async def test_a_key_is_shown_once_and_stored_as_its_hash(keys: Keys, database: AsyncEngine) -> None:
    result = keys("create", "laptop")
    assert result.returncode == 0
    key = result.stdout.strip()
    assert re.fullmatch(r"hr_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", key)
    assert "shown once" in result.stderr
    row = await stored(database)
    assert hashlib.sha256(key.encode()).hexdigest() in row
    assert prefix(key) in row
    secret = key.removeprefix(prefix(key))
    assert secret not in row
    listed = keys("list").stdout
    assert secret not in listed
    assert re.search(rf"^key_1 +{prefix(key)} .* valid .* laptop$", listed, re.MULTILINE)
    assert "Its id is key_1." in result.stderr


async def test_two_keys_with_the_same_name_are_different(keys: Keys, database: AsyncEngine) -> None:
    first, second = (keys("create", "laptop", "--project", "laptop").stdout.strip() for _ in range(2))
    assert first != second
    one, two = await principal(database, first), await principal(database, second)
    assert one.key_id != two.key_id
    assert one.project_id == two.project_id, "both are keys of the project `laptop`"


async def test_a_revoked_key_is_not_found(keys: Keys, database: AsyncEngine) -> None:
    valid, revoked = (keys("create", name).stdout.strip() for name in ("valid", "revoked"))
    assert keys("revoke", key_id(keys, revoked)).returncode == 0
    store = ApiKeyStore(database)
    assert await store.find(revoked) is None
    assert await store.find(valid) is not None
    lines = keys("list").stdout.splitlines()
    assert [(" revoked " in line, line.split()[-1]) for line in lines] == [(False, "valid"), (True, "revoked")]


def test_revoking_an_unknown_or_invalid_key_fails(keys: Keys) -> None:
    keys("create", "laptop")
    assert keys("revoke", "key_1").returncode == 0
    for wrong in ("key_1", "key_2", "key_999999999999999999"):
        again = keys("revoke", wrong)
        assert (again.returncode, again.stderr) == (1, f"no valid key has the id {wrong}\n")


@pytest.mark.parametrize("action", ["revoke", "rotate"])
def test_a_key_is_named_only_by_its_id(keys: Keys, action: str) -> None:
    """A prefix or a name may belong to several keys, and a key must not be printed. The candidates are shown."""
    keys("ensure", "a", "--project", "a", HEADRACE_API_KEY="hr_secret_one-of-the-operator")
    keys("ensure", "b", "--project", "b", HEADRACE_API_KEY="hr_secret_two-of-the-operator")
    web = [keys("create", "web", "--project", "web").stdout.strip() for _ in range(2)]
    before = keys("list").stdout
    for wrong, candidates in (
        ("hr_secret", []),
        ("hr_secret_one-of-the-operator", ["key_1"]),
        (prefix(web[0]), ["key_3"]),
        ("web", ["key_3", "key_4"]),
        ("3", []),
        ("key_", []),
        ("key_3 ", []),
        ("", []),
    ):
        refused = keys(action, wrong)
        assert refused.returncode == 1
        assert refused.stdout == ""
        first, *others = refused.stderr.splitlines()
        assert first == "a key is named by its id, such as key_12, which `list` shows"
        assert [line.split()[0] for line in others] == candidates
        assert "secret" not in refused.stderr
    assert keys("list").stdout == before, "nothing was revoked or rotated"


def test_listing_a_chosen_key_shows_no_part_of_it(keys: Keys) -> None:
    """Not even if it looks like a generated key."""
    for name, key in (("a", "hr_secret_x-and-some-more"), ("b", "hr_5ec2e750_chosen-by-an-operator")):
        assert keys("ensure", name, HEADRACE_API_KEY=key).returncode == 0
    listed = keys("list").stdout
    assert [line.split()[:2] for line in listed.splitlines()] == [["key_1", "-"], ["key_2", "-"]]
    assert "secret" not in listed
    assert "5ec2" not in listed


async def test_ensure_stores_a_chosen_key_once(keys: Keys, database: AsyncEngine) -> None:
    for _ in range(2):
        result = keys("ensure", "default", HEADRACE_API_KEY=CHOSEN)
        assert (result.returncode, result.stdout) == (0, "")
    assert await ApiKeyStore(database).find(CHOSEN) is not None
    (row,) = (await stored(database)).splitlines()
    assert CHOSEN not in row
    assert CHOSEN[:5] not in keys("list").stdout


async def test_ensure_gives_a_stored_key_the_scopes_that_it_lacks(keys: Keys, database: AsyncEngine) -> None:
    """So that an installation of an earlier version gets them at its next start; it never takes one away."""
    held = []
    for scopes in ((), ("--scope", "inference", "--scope", "admin"), ("--scope", "inference"), ()):
        assert keys("ensure", "default", *scopes, HEADRACE_API_KEY=CHOSEN).returncode == 0
        valid = await ApiKeyStore(database).find(CHOSEN)
        assert valid is not None
        held.append(valid.principal.scopes)
    both = {Scope.INFERENCE, Scope.ADMIN}
    assert held == [{Scope.INFERENCE}, both, both, both]


def test_ensure_refuses_a_revoked_key(keys: Keys) -> None:
    keys("ensure", "default", HEADRACE_API_KEY=CHOSEN)
    assert keys("revoke", "key_1").returncode == 0
    again = keys("ensure", "default", HEADRACE_API_KEY=CHOSEN)
    assert again.returncode == 1
    assert "HEADRACE_API_KEY" in again.stderr
    assert "revoked" in again.stderr


@pytest.mark.parametrize("key", ["", "short"])
def test_ensure_refuses_a_short_key(keys: Keys, key: str) -> None:
    refused = keys("ensure", "default", HEADRACE_API_KEY=key)
    assert refused.returncode == 2
    assert refused.stderr == "HEADRACE_API_KEY: must have at least 16 characters\n"


async def test_ensure_refuses_a_key_that_can_be_guessed(keys: Keys, database: AsyncEngine) -> None:
    refused = keys("ensure", "default", HEADRACE_API_KEY="abc" * 10)
    assert refused.returncode == 2
    assert "different characters" in refused.stderr
    await ApiKeyStore(database).create("old", "abc" * 10)
    assert keys("ensure", "default", HEADRACE_API_KEY="abc" * 10).returncode == 0, "it was stored by an older version"


@pytest.mark.parametrize("arguments", [(), ("create",), ("delete", "x"), ("revoke",)])
def test_an_invalid_command_shows_the_usage(keys: Keys, arguments: tuple[str, ...]) -> None:
    refused = keys(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: python -m api.keys")


async def test_a_key_belongs_to_the_named_project(keys: Keys, database: AsyncEngine) -> None:
    web, batch, other = (
        keys(*arguments).stdout.strip()
        for arguments in (
            ("create", "web", "--project", "shop"),
            ("create", "batch", "--project", "shop"),
            ("create", "web"),
        )
    )
    shop = (await principal(database, web)).project_id
    assert (await principal(database, batch)).project_id == shop
    assert (await principal(database, other)).project_id != shop, "the default is a project of the key's name"
    assert re.search(rf"^key_1 +{prefix(web)} .* inference +3-9 +shop +web$", keys("list").stdout, re.MULTILINE)


async def test_a_key_has_the_scopes_that_it_was_created_with(keys: Keys, database: AsyncEngine) -> None:
    default, both, admin = (
        keys("create", "k", "--project", "k", *arguments).stdout.strip()
        for arguments in ((), ("--scope", "inference", "--scope", "admin"), ("--scope", "admin"))
    )
    assert (await principal(database, default)).scopes == {Scope.INFERENCE}
    assert (await principal(database, both)).scopes == {Scope.INFERENCE, Scope.ADMIN}
    assert (await principal(database, admin)).scopes == {Scope.ADMIN}
    with pytest.raises(Forbidden, match="no `inference` scope"):
        (await principal(database, admin)).require(Scope.INFERENCE)
    refused = keys("create", "k", "--scope", "root")
    assert refused.returncode == 2
    assert "--scope" in refused.stderr


async def test_an_expired_key_is_not_valid(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "laptop", "--expires", "90d").stdout.strip()
    found = await ApiKeyStore(database).find(key)
    assert found is not None
    assert found.expires_in_s == pytest.approx(90 * 24 * 3600, abs=60)
    assert "expires " in keys("list").stdout
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 second'"))
    assert await ApiKeyStore(database).find(key) is None
    assert "expired " in keys("list").stdout
    with pytest.raises(Unauthorized, match="not valid"):
        await Authenticator(ApiKeyStore(database), cache_s=60).principal(key)


async def test_the_cache_does_not_outlive_a_key(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "laptop", "--expires", "90d").stdout.strip()
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET expires_at = now() + interval '1 second'"))
    authenticator = Authenticator(ApiKeyStore(database), cache_s=3600)
    await authenticator.principal(key)

    async def refused() -> bool:
        try:
            await authenticator.principal(key)
        except Unauthorized:
            return True
        return False

    await eventually(refused, "the key has expired", within_s=5)


def test_a_key_joins_an_existing_project_only_if_it_is_named(keys: Keys) -> None:
    """A second key of a name must not silently gain access to what the first has created."""
    assert keys("create", "alice").returncode == 0
    refused = keys("create", "alice")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "add --project alice" in refused.stderr
    assert keys("create", "alice", "--project", "alice").returncode == 0
    assert len(keys("list").stdout.splitlines()) == 2


@pytest.mark.parametrize("duration", ["", "90", "d", "-1d", "1w", "9999999d"])
def test_an_invalid_duration_is_refused(keys: Keys, duration: str) -> None:
    refused = keys("create", "laptop", f"--expires={duration}")
    assert refused.returncode == 2
    assert "must be a duration such as 90d" in refused.stderr


async def test_rotation_overlaps(keys: Keys, database: AsyncEngine) -> None:
    """During the overlap, both keys are valid for the same project; then the old one expires."""
    old = keys("create", "web", "--project", "shop", "--scope", "inference", "--scope", "admin").stdout.strip()
    rotated = keys("rotate", key_id(keys, old), "--overlap", "1h")
    assert rotated.returncode == 0
    assert "shown once" in rotated.stderr
    assert "Limits and budgets of" in rotated.stderr
    new = rotated.stdout.strip()
    before, after = await principal(database, old), await principal(database, new)
    assert (after.project_id, after.scopes) == (before.project_id, before.scopes)
    assert after.key_id != before.key_id
    found, successor = await ApiKeyStore(database).find(old), await ApiKeyStore(database).find(new)
    assert found is not None
    assert found.expires_in_s == pytest.approx(3600, abs=60)
    assert successor is not None
    assert successor.expires_in_s is None

    assert keys("rotate", key_id(keys, new), "--overlap", "0s").returncode == 0
    assert await ApiKeyStore(database).find(new) is None, "without an overlap it is invalid at once"


async def test_rotation_does_not_extend_a_key(keys: Keys, database: AsyncEngine) -> None:
    old = keys("create", "web", "--expires", "1h").stdout.strip()
    assert keys("rotate", key_id(keys, old), "--overlap", "30d", "--expires", "2h").returncode == 0
    found = await ApiKeyStore(database).find(old)
    assert found is not None
    assert found.expires_in_s == pytest.approx(3600, abs=60)


def test_rotation_requires_a_valid_key(keys: Keys) -> None:
    keys("create", "a")
    keys("revoke", "key_1")
    for wrong in ("key_1", "key_2"):
        refused = keys("rotate", wrong)
        assert (refused.returncode, refused.stderr) == (1, f"no valid key has the id {wrong}\n")
    assert len(keys("list").stdout.splitlines()) == 1


async def test_a_key_has_the_priorities_that_it_was_granted(keys: Keys, database: AsyncEngine) -> None:
    ordinary, urgent = (
        keys("create", "k", "--project", "k", *arguments).stdout.strip()
        for arguments in ((), ("--priority-floor", "0"))
    )
    chosen = "a-key-that-an-operator-chose"
    keys("ensure", "default", HEADRACE_API_KEY=chosen)
    floors = [(await principal(database, key)).priority_floor for key in (ordinary, urgent, chosen)]
    assert floors == [3, 0, 0], "the operator's own key has all priorities"
    (await principal(database, ordinary)).require_priority(3)
    with pytest.raises(Forbidden, match="from 3 to 9, not 2"):
        (await principal(database, ordinary)).require_priority(2)

    assert keys("set", "key_2", "--priority-floor", "5").returncode == 0
    rotated = keys("rotate", "key_2").stdout.strip()
    assert (await principal(database, rotated)).priority_floor == 5, "a successor has the same limits"
    assert keys("set", "key_9", "--priority-floor", "5").returncode == 1
    assert keys("set", "key_2", "--priority-floor", "10").returncode == 2
    assert keys("set", "key_2").returncode == 2


async def test_what_a_key_is_called_and_may_do_is_changed(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "web", "--expires", "90d").stdout.strip()
    arguments = ("--name", "shop", "--scope", "inference", "--scope", "admin", "--expires", "never")
    assert keys("set", "key_1", *arguments).returncode == 0
    found = await ApiKeyStore(database).find(key)
    assert found is not None
    assert (found.principal.scopes, found.expires_in_s) == (frozenset({Scope.INFERENCE, Scope.ADMIN}), None)
    assert "shop" in keys("list").stdout
    assert keys("set", "key_1", "--scope", "inference", "--expires", "1h").returncode == 0
    found = await ApiKeyStore(database).find(key)
    assert found is not None
    assert (found.principal.scopes, found.principal.priority_floor) == (frozenset({Scope.INFERENCE}), 3)
    assert found.expires_in_s == pytest.approx(3600, abs=60)
    assert keys("set", "key_1", "--name", "two\nlines").returncode == 2


async def test_scopes_of_a_newer_version_are_kept(keys: Keys, database: AsyncEngine) -> None:
    keys("create", "web")
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET scopes = '{inference,novel}'"))
    assert keys("set", "key_1", "--scope", "admin").returncode == 0
    async with database.connect() as connection:
        scopes = (await connection.execute(text("SELECT scopes FROM api_keys"))).scalar_one()
    assert scopes == ["admin", "novel"]


async def test_the_last_use_of_a_key_is_recorded_once_a_minute(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "laptop").stdout.strip()
    assert "never used" in keys("list").stdout
    store = ApiKeyStore(database)

    async def last_used() -> datetime:
        (found,) = await store.all()
        assert found.last_used_at is not None
        return found.last_used_at

    await store.find(key)
    first = await last_used()
    await store.find(key)
    assert await last_used() == first
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET last_used_at = now() - interval '61 seconds'"))
    await store.find(key)
    assert await last_used() > first
    assert re.search(r"used \d{4}-", keys("list").stdout)


async def test_a_revoked_key_is_refused_when_its_cache_entry_expires(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "laptop").stdout.strip()
    cached, uncached = (Authenticator(ApiKeyStore(database), cache_s=seconds) for seconds in (1.0, 0.0))
    assert await cached.principal(key) == await uncached.principal(key)
    await ApiKeyStore(database).revoke(1)
    with pytest.raises(Unauthorized, match="not valid"):
        await uncached.principal(key)

    async def refused() -> bool:
        try:
            await cached.principal(key)
        except Unauthorized:
            return True
        return False

    await eventually(refused, "the cached key is refused", within_s=5)


class CountingStore(ApiKeyStore):
    """Counts lookups."""

    lookups = 0

    async def find(self, key: str) -> ValidKey | None:
        self.lookups += 1
        return await super().find(key)


async def test_a_burst_of_requests_looks_a_key_up_once(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "laptop").stdout.strip()
    store = CountingStore(database)
    authenticator = Authenticator(store, cache_s=60)
    waiting = [asyncio.create_task(authenticator.principal(key)) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    principals = await asyncio.gather(*waiting[1:])
    assert len(set(principals)) == 1
    assert store.lookups == 1
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]

    refused = await asyncio.gather(
        *(authenticator.principal("hr_unknown_key") for _ in range(50)), return_exceptions=True
    )
    assert {type(error) for error in refused} == {Unauthorized}
    assert store.lookups == 2


async def test_a_key_that_cannot_be_read_is_not_looked_up_for_each_request(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "laptop").stdout.strip()
    async with database.begin() as connection:
        await connection.execute(text("""UPDATE api_keys SET options = '{"token_limits": {"max_input": "many"}}'"""))
    store = CountingStore(database)
    authenticator = Authenticator(store, cache_s=60)
    for _ in range(3):
        with pytest.raises(UnreadableRow):
            await authenticator.principal(key)
    assert store.lookups == 1
    assert authenticator.cached_key_ids() == set()
    authenticator.forget(1)


async def test_a_key_has_options(keys: Keys, database: AsyncEngine) -> None:
    key = keys(
        "create", "web", "--max-output-tokens", "500", "--on-exceed", "clamp", "--cache-ttl", "1h"
    ).stdout.strip()

    async def options() -> dict[str, object]:
        async with database.connect() as connection:
            query = text("SELECT options FROM api_keys WHERE id = 1")
            return dict((await connection.execute(query)).scalar_one())

    limits = {"max_output": 500, "on_exceed": "clamp"}
    assert await options() == {"token_limits": limits, "cache": {"ttl": 3600, "scope": "project"}}
    assert (await principal(database, key)).options.token_limits == TokenLimits.model_validate(limits)
    assert keys("set", "key_1", "--default-output-tokens", "100", "--cache-scope", "user").returncode == 0
    limits |= {"default_output": 100}
    assert await options() == {"token_limits": limits, "cache": {"ttl": 3600, "scope": "user"}}, "others are kept"
    assert keys("set", "key_1", "--context", "summarize", "--context-model", "small", "--no-cache").returncode == 0
    context = {"strategy": "summarize", "model": "small", "trigger": 0.8, "target": 0.4}
    assert await options() == {"token_limits": limits, "context": context, "no_cache": True}
    assert keys("list").stdout.endswith(
        "  web  [max-output-tokens=500 default-output-tokens=100 on-exceed=clamp context=summarize context-model=small"
        " no-cache]\n"
    )
    shares = ("--context-trigger", "0.9", "--context-target", ".3", "--context-trigger-tokens", "5000")
    assert keys("set", "key_1", *shares).returncode == 0
    context = {**context, "trigger": 0.9, "target": 0.3, "trigger_tokens": 5000}
    assert (await options())["context"] == context
    assert (
        "context-model=small context-trigger=0.9 context-target=0.3 context-trigger-tokens=5000" in keys("list").stdout
    )
    assert keys("set", "key_1", "--context-trigger-tokens", "none").returncode == 0
    rotated = keys("rotate", "key_1").stdout.strip()
    assert (await principal(database, rotated)).options == (await principal(database, key)).options
    assert keys("set", "key_1", "--allowed-models", "small, auto").returncode == 0
    assert (await options())["allowed_models"] == ["small", "auto"]
    assert "allowed-models=small,auto" in keys("list").stdout
    for argument in ("--max-output-tokens", "--default-output-tokens", "--context", "--cache-ttl", "--allowed-models"):
        assert keys("set", "key_1", argument, "none").returncode == 0
    assert await options() == {}
    assert keys("set", "key_1", "--priority-floor", "5").returncode == 0
    assert (await principal(database, key)).priority_floor == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-output-tokens", "10", "--default-output-tokens", "20"), "--default-output-tokens: .*at most"),
        (("--max-output-tokens", "0"), "must be a number of tokens, at least 1"),
        (("--max-input-tokens", "-5"), "--max-input-tokens"),
        (("--on-exceed", "clamp"), "--on-exceed: requires --max-output-tokens"),
        (("--on-exceed", "ignore"), "--on-exceed"),
        (("--cache-ttl", "31d"), "at most 30d"),
        (("--cache-ttl", "0"), "must be a duration"),
        (("--no-cache", "--cache-ttl", "1h"), "--no-cache: cannot be combined"),
        (("--cache-scope", "all"), "--cache-scope"),
        (("--context", "sliding_window", "--context-model", "small"), "--context-model: .*only for the --context"),
        (("--context-model", "small"), "--context-model: .*only for the --context"),
        (("--context", "forget"), "--context"),
        (("--context-trigger", "0.5"), "--context-trigger: requires --context"),
        (
            ("--context", "error", "--context-trigger", "0.3"),
            "--context-target must be less than --context-trigger=0.3",
        ),
        (("--context", "error", "--context-target", "1.5"), "must be a share such as 0.8"),
        (("--context", "none", "--context-target", "0.2"), "--context-target: cannot be combined with --context none"),
        (("--context", "error", "--context-trigger-tokens", "0"), "must be a number of tokens"),
        (("--allowed-models", "small,,auto"), "must be names of models"),
        (("--allowed-models", "two words"), "must be names of models"),
    ],
)
async def test_options_that_make_no_sense_are_refused(
    keys: Keys, database: AsyncEngine, arguments: tuple[str, ...], message: str
) -> None:
    refused = keys("create", "web", *arguments)
    assert refused.returncode == 2
    assert re.search(message, refused.stderr)
    assert keys("list").stdout == ""
    keys("create", "web")
    assert keys("set", "key_1", *arguments).returncode == 2
    assert (await stored(database)).endswith(",{})"), "nothing was changed"


async def test_options_of_a_newer_version_are_kept(keys: Keys, database: AsyncEngine) -> None:
    keys("create", "web")
    async with database.begin() as connection:
        await connection.execute(text("""UPDATE api_keys SET options = '{"later": 1}'"""))
    assert keys("set", "key_1", "--max-input-tokens", "10").returncode == 0
    async with database.connect() as connection:
        options = (await connection.execute(text("SELECT options FROM api_keys"))).scalar_one()
    assert options == {"later": 1, "token_limits": {"max_input": 10, "on_exceed": "reject"}}


async def test_a_project_has_a_tier(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "web", "--project", "shop").stdout.strip()
    assert (await principal(database, key)).tier is None
    assert keys("tier", "shop", "free").returncode == 0
    assert (await principal(database, key)).tier == "free"
    assert keys("list").stdout.endswith("  [tier=free]\n")
    assert keys("tier", "shop", "none").returncode == 0
    assert (await principal(database, key)).tier is None
    missing = keys("tier", "another", "free")
    assert (missing.returncode, missing.stderr) == (1, "there is no project 'another'; `list` shows the projects\n")
    assert keys("tier", "shop", "").returncode == 2


async def test_a_project_and_a_key_have_levels_of_the_request_log(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "web", "--project", "shop", "--log-level", "none").stdout.strip()
    found = await principal(database, key)
    assert (found.options.log_level, found.project_log_level) == (LogLevel.NONE, None)
    assert keys("list").stdout.endswith("  [log-level=none]\n")
    assert keys("set", "key_1", "--log-level", "metadata").returncode == 0
    assert keys("log-level", "shop", "none").returncode == 0
    found = await principal(database, key)
    assert (found.options.log_level, found.project_log_level) == (LogLevel.METADATA, LogLevel.NONE)
    earlier = await EarlierWork(ApiKeyStore(database), cache_s=0).principal(found.owner)
    assert (earlier.options.log_level, earlier.project_log_level) == (LogLevel.METADATA, LogLevel.NONE)
    assert keys("set", "key_1", "--log-level", "unset").returncode == 0
    assert keys("log-level", "shop", "unset").returncode == 0
    found = await principal(database, key)
    assert (found.options.log_level, found.project_log_level) == (None, None)
    assert keys("log-level", "another", "none").returncode == 1
    assert keys("log-level", "shop", "some").returncode == 2


async def test_a_level_that_keeps_bodies_needs_a_key_to_encrypt_them(keys: Keys, database: AsyncEngine) -> None:
    keys("create", "web")
    for arguments in (("set", "key_1", "--log-level", "full"), ("log-level", "web", "redacted")):
        refused = keys(*arguments)
        assert (refused.returncode, "HEADRACE_LOG_KEY" in refused.stderr) == (2, True)
        assert "generate-key" in refused.stderr
        assert keys(*arguments, HEADRACE_LOG_KEY=generate_master_key()).returncode == 0


async def test_options_of_a_project_of_a_newer_version_are_kept(keys: Keys, database: AsyncEngine) -> None:
    keys("create", "web")
    async with database.begin() as connection:
        await connection.execute(text("""UPDATE projects SET options = '{"later": 1, "log_level": "hashed"}'"""))
    assert keys("tier", "web", "free").returncode == 0
    async with database.connect() as connection:
        query = text("SELECT options FROM projects")
        assert (await connection.execute(query)).scalar_one() == {"later": 1, "log_level": "hashed"}
        assert keys("log-level", "web", "metadata").returncode == 0
        assert (await connection.execute(query)).scalar_one() == {"later": 1, "log_level": "metadata"}


async def test_earlier_work_has_the_options_that_its_key_has_now(keys: Keys, database: AsyncEngine) -> None:
    key = keys("create", "web").stdout.strip()
    owner = (await principal(database, key)).acting_for("alice").owner
    earlier_work = EarlierWork(ApiKeyStore(database), cache_s=0)
    assert (await earlier_work.principal(owner)).options == KeyOptions()
    keys("set", "key_1", "--max-output-tokens", "10")
    keys("tier", "web", "free")
    keys("revoke", "key_1")
    found = await earlier_work.principal(owner)
    assert found.options.token_limits == TokenLimits(max_output=10)
    assert (found.tier, found.owner) == ("free", owner)
    kept = EarlierWork(ApiKeyStore(database), cache_s=60)
    assert await kept.principal(owner) == found
    assert (await kept.principal(replace(owner, end_user="bob"))).end_user == "bob"
