"""What the list of jobs shows: the conditions in its address, and the same as words in the search box."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from urllib.parse import urlencode

from api.jobs.search import ALL, MAX_METADATA_FILTERS, MAX_TEXT, JobQuery
from shared.domain.job import JobStatus

RANGES: Final[Mapping[str, timedelta]] = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
# Words of the search box with one value, by the field that they set.
_WORDS: Final[Mapping[str, str]] = {
    "model": "model",
    "project": "project",
    "key": "key",
    "user": "user",
    "last": "range",
    "from": "start",
    "to": "end",
}
_METADATA = "meta."
_PLAIN = re.compile(r"[^\s\"'\\]+")


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a list. `range` is a name of `RANGES`; `start` and `end` are other limits of the submission."""

    statuses: tuple[JobStatus, ...] = ()
    model: str | None = None
    project: str | None = None
    key: str | None = None
    user: str | None = None
    metadata: tuple[str, ...] = ()
    range: str | None = None
    start: datetime | None = None
    end: datetime | None = None

    @property
    def any(self) -> bool:
        """Whether there is a condition."""
        return self != Conditions()

    def changed(self, **changes: Any) -> Self:
        """These conditions with others in place of some."""
        return replace(self, **changes)

    def parameters(self) -> list[tuple[str, str]]:
        """The parameters of an address that `read` understands."""
        pairs = [("status", status.value) for status in self.statuses]
        pairs += [("meta", member) for member in self.metadata]
        for name in ("model", "project", "key", "user", "range"):
            if (value := getattr(self, name)) is not None:
                pairs.append((name, value))
        pairs += [("from", _moment(self.start))] if self.start is not None else []
        pairs += [("to", _moment(self.end))] if self.end is not None else []
        return pairs

    def address(self, path: str = "jobs", **more: str | None) -> str:
        """The address of a page with these conditions, relative to the console's root."""
        pairs = [*self.parameters(), *((name, value) for name, value in more.items() if value is not None)]
        return f"{path}?{urlencode(pairs)}" if pairs else path

    def words(self) -> str:
        """The same conditions as words of the search box."""
        named = {field: word for word, field in _WORDS.items()}
        words = [f"status:{','.join(status.value for status in self.statuses)}"] if self.statuses else []
        for field, word in named.items():
            value = getattr(self, field)
            if value is not None:
                words.append(f"{word}:{_quoted(_moment(value) if isinstance(value, datetime) else value)}")
        return " ".join([*words, *(_quoted(f"{_METADATA}{member}") for member in self.metadata)])

    def query(self, now: datetime, *, all_projects: bool) -> JobQuery:
        """The conditions of a search. `all_projects`: of all projects, unless they name one."""
        start = self.start
        if self.range is not None:
            begin = now - RANGES[self.range]
            start = begin if start is None else max(start, begin)
        return JobQuery(
            statuses=self.statuses,
            model=self.model,
            project=(self.project or ALL) if all_projects else self.project,
            key=self.key,
            user=self.user,
            created_after=start,
            created_before=self.end,
            metadata=self.metadata,
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """Conditions, and what could not be understood, in sentences."""

    conditions: Conditions
    problems: Sequence[str] = ()


def read(pairs: Iterable[tuple[str, str]]) -> Reading:
    """Read the parameters of an address or of a form. Empty ones are absent."""
    found = Conditions()
    problems: list[str] = []
    for name, value in pairs:
        if not (value := value.strip()) or name not in ("status", "meta", "range", *_WORDS):
            continue
        if "\0" in value:
            problems.append("A condition has the character NUL, which no job has.")
            continue
        try:
            if name == "status":
                found = _with_status(found, value)
            elif name == "meta":
                found = _with_metadata(found, value)
            else:
                field = _WORDS.get(name, name)
                found = found.changed(**{field: _value(field, value)})
        except ValueError as error:
            problems.append(str(error))
    return Reading(found, problems)


def parse(text: str) -> Reading:
    """Read words of the search box: `status:failed model:x user:"Ann B" meta.team=docs last:24h`."""
    try:
        words = shlex.split(text)
    except ValueError:
        return Reading(Conditions(), ["A quotation mark is not closed."])
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    for word in words:
        name, separator, value = word.partition(":")
        if word.startswith(_METADATA) and "=" in word:
            pairs.append(("meta", word.removeprefix(_METADATA)))
        elif separator and value and name == "status":
            pairs += [("status", part) for part in value.split(",")]
        elif separator and value and name in _WORDS:
            pairs.append((_WORDS[name] if name == "last" else name, value))
        else:
            problems.append(f"“{word[:64]}” is neither the id of a job nor a condition.")
    reading = read(pairs)
    return Reading(reading.conditions, [*problems, *reading.problems])


def _with_status(found: Conditions, value: str) -> Conditions:
    if value == "running":  # the word that people use
        value = JobStatus.IN_PROGRESS.value
    try:
        status = JobStatus(value)
    except ValueError:
        raise ValueError(f"There is no status “{value[:32]}”. There are {', '.join(JobStatus)}.") from None
    return found if status in found.statuses else found.changed(statuses=(*found.statuses, status))


def _with_metadata(found: Conditions, member: str) -> Conditions:
    name, separator, _ = member.partition("=")
    if not name or not separator:
        raise ValueError(f"“{member[:64]}” is not KEY=VALUE.")
    if len(found.metadata) >= MAX_METADATA_FILTERS:
        raise ValueError(f"At most {MAX_METADATA_FILTERS} members of metadata can be looked for.")
    return found if member in found.metadata else found.changed(metadata=(*found.metadata, member))


def _value(field: str, value: str) -> str | datetime:
    if field == "range":
        if value not in RANGES:
            raise ValueError(f"There is no time range “{value[:32]}”. There are {', '.join(RANGES)}.")
        return value
    if field in ("start", "end"):
        try:
            moment = datetime.fromisoformat(value)
            # The console writes times in UTC where it cannot know the viewer's zone.
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError(f"“{value[:32]}” is not a time, such as 2026-11-30 or 2026-11-30T14:00.") from None
    if len(value) > MAX_TEXT:
        raise ValueError(f"A condition has more than {MAX_TEXT} characters.")
    return value


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}".removesuffix(":00")


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))
