"""The seams of a job: only `insert_queued` creates open jobs, only `end_statement` ends them, `insert_answered` both.

What must happen exactly once per job is part of these statements, so a second way in or out would bypass it. The
tests read the syntax trees of all sources. Every use of `JobRow` that is not known to be harmless counts as an insert,
and every status that is not known to be non-terminal counts as an end.
"""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import inspect

from shared.domain.job import JobStatus
from shared.postgres.tables import JobRow
from tests.support.stack import REPOSITORY

PACKAGES = ("api", "launcher", "shared", "workers")
ENTRY = "shared/postgres/job_inserts.py:insert_queued"
EXIT = "shared/postgres/job_ends.py:end_statement"
# Creates jobs that have ended: the response cache answers them.
ANSWER = "shared/postgres/job_inserts.py:insert_answered"
# Ends followers after their leader, in every statement that uses it.
FOLLOWERS = "shared/postgres/followers.py:settle_followers"
SETTLEMENT = "shared/postgres/job_ends.py:settle_statement"
# Adds what must be written exactly once per end.
EFFECTS = "with_effects"

OPEN_STATUSES = {status.name for status in JobStatus if not status.terminal}
COLUMNS = set(inspect(JobRow).column_attrs.keys())
# Calls that may get the class `JobRow` as an argument, under the names that SQLAlchemy gives them. It inserts into no
# alias.
NO_INSERT = {
    "select", "select_from", "join", "join_from", "outerjoin", "exists", "aliased", "correlate", "update", "delete",
}  # fmt: skip
RAW_WRITE = re.compile(r'\b(insert\s+into|merge\s+into|copy|update)\s+(only\s+)?("?\w+"?\.)?"?jobs\b', re.IGNORECASE)


@dataclass
class Writes:
    """The places (`file:function`) that write to the table `jobs`."""

    inserts: set[str] = field(default_factory=set)
    # The status that is set: the name of a `JobStatus`, or the expression if it is not one.
    statuses: set[tuple[str, str]] = field(default_factory=set)
    # The places that add the effects of an end.
    effects: set[str] = field(default_factory=set)
    # The places that end the followers of jobs that have ended.
    follower_ends: set[str] = field(default_factory=set)

    @property
    def ends(self) -> set[str]:
        return {place for place, status in self.statuses if status not in OPEN_STATUSES}


class Source:
    """The syntax tree of one file."""

    def __init__(self, path: str, code: str) -> None:
        self._path = path
        self._tree = ast.parse(code)
        self._parents = {child: node for node in ast.walk(self._tree) for child in ast.iter_child_nodes(node)}
        self._imported = {
            alias.asname or alias.name: alias.name
            for node in ast.walk(self._tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def add_writes(self, writes: Writes) -> None:
        for node in ast.walk(self._tree):
            if self._inserts(node):
                writes.inserts.add(self._place(node))
            for value in self._written_statuses(node):
                writes.statuses.add((self._place(node), _status(value)))
            if isinstance(node, ast.Call) and self._called(node.func) == EFFECTS:
                writes.effects.add(self._place(node))
            if isinstance(node, ast.Call) and self._called(node.func) == FOLLOWERS.rpartition(":")[2]:
                writes.follower_ends.add(self._place(node))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and RAW_WRITE.search(node.value):
                writes.inserts.add(self._place(node))
                writes.statuses.add((self._place(node), "SQL text"))

    def _place(self, node: ast.AST) -> str:
        names: list[str] = []
        above = self._parents.get(node)
        while above is not None:
            if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.insert(0, above.name)
            above = self._parents.get(above)
        return f"{self._path}:{'.'.join(names)}"

    def _inserts(self, node: ast.AST) -> bool:
        """Whether this is a use of `JobRow` that may insert a row."""
        if isinstance(node, ast.ImportFrom):
            return any(alias.name == "JobRow" and alias.asname not in (None, "JobRow") for alias in node.names)
        if not _is_job_row(node):
            return False
        parent = self._parents[node]
        match parent:
            case ast.Attribute(attr=name):
                return name not in COLUMNS
            case ast.Call(func=function, args=arguments) if node in arguments:
                return self._called(function) not in NO_INSERT
            case ast.keyword(arg="of"):
                return False
        return True

    def _called(self, function: ast.expr) -> str:
        match function:
            case ast.Name(id=name):
                return self._imported.get(name, name)
            case ast.Attribute(attr=name):
                return name
        return ast.unparse(function)

    def _written_statuses(self, node: ast.AST) -> Iterator[ast.expr]:
        """The values that are written to `JobRow.status` here."""
        match node:
            case ast.Dict(keys=keys, values=values):
                yield from (value for key, value in zip(keys, values, strict=True) if _is_status(key))
            case ast.Assign(targets=[ast.Subscript(slice=key)], value=value) if _is_status(key):
                yield value
            case ast.Tuple(elts=[key, value]) if _is_status(key):
                yield value
            case ast.Call(func=ast.Attribute(attr="values", value=statement), args=arguments, keywords=keywords):
                if not any(_is_job_row(part) for part in ast.walk(statement)):
                    return
                yield from (keyword.value for keyword in keywords if keyword.arg == "status")
                for argument in arguments:
                    if isinstance(argument, ast.Dict):
                        items = zip(argument.keys, argument.values, strict=True)
                        yield from (value for key, value in items if _is_constant(key, "status"))


def _is_job_row(node: ast.AST | None) -> bool:
    match node:
        case ast.Name(id="JobRow") | ast.Attribute(attr="JobRow"):
            return True
    return False


def _is_status(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "status" and _is_job_row(node.value)


def _is_constant(node: ast.AST | None, value: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def _status(value: ast.expr) -> str:
    match value:
        case ast.Call(func=ast.Name(id="literal"), args=[inner]):
            return _status(inner)
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="JobStatus"), attr=name), attr="value"):
            return name
    return ast.unparse(value)


@pytest.fixture(scope="module")
def writes() -> Writes:
    found = Writes()
    gc.disable()  # Python 3.11 may fail with a SystemError if a collection parses while a file is parsed (gh-106905)
    try:
        for package in PACKAGES:
            for file in sorted((REPOSITORY / package).rglob("*.py")):
                Source(str(file.relative_to(REPOSITORY)), file.read_text()).add_writes(found)
    finally:
        gc.enable()
    return found


def test_one_statement_creates_open_jobs_and_one_jobs_that_have_ended(writes: Writes) -> None:
    assert writes.inserts == {ENTRY, ANSWER}
    assert {status for place, status in writes.statuses if place == ENTRY} == {"QUEUED"}
    assert {status for place, status in writes.statuses if place == ANSWER} == {"COMPLETED"}


def test_one_statement_ends_jobs_beside_the_one_that_creates_ended_jobs(writes: Writes) -> None:
    assert writes.ends == {EXIT, ANSWER, FOLLOWERS}


def test_every_end_has_the_same_effects(writes: Writes) -> None:
    assert writes.follower_ends == {SETTLEMENT}
    assert writes.effects == writes.ends - {FOLLOWERS} | writes.follower_ends


def test_status_changes_are_in_the_postgres_package(writes: Writes) -> None:
    assert {place.rpartition("/")[0] for place, _ in writes.statuses} == {"shared/postgres"}
    assert {status for _, status in writes.statuses} >= OPEN_STATUSES, "the check sees the known changes"


@pytest.mark.parametrize(
    "code",
    [
        "insert(JobRow).values(id='job_1')",
        "insert(tables.JobRow)",
        "from sqlalchemy.dialects.postgresql import insert as update\nupdate(JobRow)",
        "from sqlalchemy.dialects.postgresql import insert as upsert\nupsert(JobRow)",
        "session.add(JobRow(id='job_1'))",
        "JobRow.__table__.insert()",
        "table = JobRow",
        "write(JobRow)",
        "from shared.postgres.tables import JobRow as Row",
        "text('INSERT INTO jobs (id) VALUES (1)')",
        "text(f'insert  into public.\"jobs\" (id) values ({x})')",
    ],
)
def test_another_insert_is_found(code: str) -> None:
    found = Writes()
    Source("x.py", f"def f():\n    {code.replace(chr(10), chr(10) + '    ')}").add_writes(found)
    assert found.inserts == {"x.py:f"}


@pytest.mark.parametrize(
    "code",
    [
        "update(JobRow).values({JobRow.status: JobStatus.FAILED.value})",
        "update(JobRow).values({JobRow.status: literal(JobStatus.EXPIRED.value)})",
        "update(JobRow).values({JobRow.status: 'failed'})",
        "update(JobRow).values({JobRow.status: status})",
        "update(JobRow).values({JobRow.status: JobStatus.QUEUED.value if again else JobStatus.FAILED.value})",
        "update(JobRow).where(guard).values(status='failed')",
        "update(JobRow).values({'status': 'failed'}).returning(JobRow.id)",
        "update(JobRow).ordered_values((JobRow.status, 'failed'))",
        "values[JobRow.status] = 'failed'",
        "text('UPDATE jobs SET status = :status')",
    ],
)
def test_another_end_is_found(code: str) -> None:
    found = Writes()
    Source("x.py", f"class C:\n    def f(self):\n        {code}").add_writes(found)
    assert found.ends == {"x.py:C.f"}


@pytest.mark.parametrize(
    "code",
    [
        "select(JobRow.id).where(JobRow.status == JobStatus.FAILED.value).with_for_update(of=JobRow)",
        "update(JobRow).values({JobRow.status: JobStatus.CANCELLING.value})",
        "delete(JobRow).where(JobRow.status.in_(TERMINAL))",
        "update(BatchRow).values({BatchRow.status: 'failed'})",
        "text('SELECT status FROM jobs FOR UPDATE')",
    ],
)
def test_other_statements_are_allowed(code: str) -> None:
    found = Writes()
    Source("x.py", code).add_writes(found)
    assert (found.inserts, found.ends) == (set(), set())
