"""`headrace batch` and `headrace batches`: upload a file of requests, wait for its batch, save the results."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from cli.client import Client, path
from cli.errors import CliError, ExitCode, UsageError
from cli.options import After, All, Json, Limit, Quiet, connect, show_list
from cli.output import Column, console, note, print_json, say, status_text
from cli.text import age, count, one_line, size, with_param

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_S = 1.0
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
MAX_ERRORS = 10
STDOUT = Path("-")


def batch(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Requests as JSON lines, in the format of OpenAI's Batch API."),
    ] = None,
    watch: Annotated[
        str | None, typer.Option("--watch", metavar="ID", help="Wait for a batch that was created before.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Where to save the results; `-` is stdout. Without it: FILE.output.jsonl. Errors go to a file beside.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    window: Annotated[
        str, typer.Option(metavar="DURATION", help="Requests that have not ended by then expire.")
    ] = "24h",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the batch's id and do not wait.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a file of requests, wait for the results and save them.

    Ctrl-C leaves the batch running; --watch ID waits for it again.
    """
    if (file is None) == (watch is None):
        raise UsageError("Give either a file or --watch ID.")
    if as_json and output == STDOUT:
        raise UsageError("--json and --output - exclude each other: both write to stdout.")
    source = Path(watch or "") if file is None else file
    for given, option in ((source, "FILE" if watch is None else "--watch"), (output, "--output")):
        if given is not None and not given.name:
            raise UsageError(f"{option} must have a name, got {one_line(given)!r}.")
    files = _Files.of(source if file is None else source.with_suffix(""), output, replace=force)
    if not no_wait:
        files.check()
    with connect(context) as client, _Progress(quiet=quiet) as progress:
        if watch is not None:
            found = client.get(path("batches", watch))
        else:
            assert file is not None
            found = create(client, file, window, progress)
        if no_wait:
            print_json(found) if as_json else say(found["id"])
            return
        progress.say(f"{found['id']} {found['status']}")
        try:
            found = wait(client, found, progress)
            saved = files.save(client, found, progress)
        except KeyboardInterrupt:
            progress.stop()
            note(f"The batch goes on. Wait for it again:  headrace batch --watch {found['id']}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        print_json(found | saved)
    else:
        report(found, saved, file)
    if found["status"] != "completed" or found["request_counts"]["failed"]:
        raise typer.Exit(ExitCode.FAILED)


def create(client: Client, file: Path, window: str, progress: _Progress) -> dict[str, Any]:
    """Upload a file and create its batch. Returns the batch."""
    try:
        source = file.open("rb")
    except OSError as error:
        raise UsageError(f"{one_line(file)} cannot be read: {error.strerror}.") from None
    with source:
        if not source.seekable():
            raise UsageError(f"{one_line(file)} is not a regular file.", "Save the requests in one, and name it.")
        endpoint = _endpoint(source, file)
        with progress.transfer(f"uploading {file.name}", os.fstat(source.fileno()).st_size) as advance:
            uploaded = client.upload(
                "/v1/files", data={"purpose": "batch"}, files={"file": (file.name, _Counted(source, advance))}
            )
    body = {"input_file_id": uploaded["id"], "endpoint": endpoint, "completion_window": window}
    return client.post("/v1/batches", json=body)


def _endpoint(source: BinaryIO, file: Path) -> str:
    """The endpoint of the first request; the server checks that the others have the same."""
    line = next((line for line in source if line.strip()), b"")
    source.seek(0)
    try:
        url = json.loads(line)["url"]
    except (ValueError, KeyError, TypeError, RecursionError):
        url = None
    if not isinstance(url, str):
        raise UsageError(
            f"{one_line(file)} is not a file of requests: its first line has no `url`.",
            'Lines look like this:  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}',
        )
    return url


class _Counted:
    """A file that reports how much of it was read."""

    def __init__(self, source: BinaryIO, advance: Any) -> None:
        self._source = source
        self._advance = advance

    def read(self, amount: int = -1) -> bytes:
        data = self._source.read(amount)
        self._advance(len(data))
        return data

    def fileno(self) -> int:  # by which httpx knows the length
        return self._source.fileno()

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(65536):
            yield data


def wait(client: Client, batch: dict[str, Any], progress: _Progress) -> dict[str, Any]:
    """Show a batch's progress until it has ended. Returns the batch."""
    where = path("batches", batch["id"])
    while True:
        progress.batch(batch)
        if batch["status"] in ENDED:
            return batch
        time.sleep(POLL_S)
        batch = client.retrying(progress.lost, lambda: client.get(where), contacted=True)


class _Files:
    """Where the results and the errors of a batch are saved. `output` is None if the results go to stdout."""

    def __init__(self, output: Path | None, errors: Path, *, replace: bool) -> None:
        self._output = output
        self._errors = errors
        self._replace = replace

    @classmethod
    def of(cls, name: Path, output: Path | None, *, replace: bool) -> _Files:
        """`name`: the input without its suffix, or the batch's id. `replace`: files of an earlier run."""
        errors = name.with_name(f"{name.name}.errors.jsonl")
        if output is None:
            return cls(name.with_name(f"{name.name}.output.jsonl"), errors, replace=replace)
        if output == STDOUT:
            return cls(None, errors, replace=replace)
        return cls(output, output.with_name(f"{output.with_suffix('').name}.errors.jsonl"), replace=replace)

    def check(self) -> None:
        """Raise `UsageError` if a file exists that must not be replaced."""
        if self._replace:
            return
        for file in (self._output, self._errors):
            if file is not None and file.exists():
                raise UsageError(f"{one_line(file)} exists.", "Name another with --output, or replace it with --force.")

    def save(self, client: Client, batch: dict[str, Any], progress: _Progress) -> dict[str, Any]:
        """Save the result files of an ended batch. Returns their paths, None for a file that there is not.

        A file of an earlier run that this one has no successor for is removed, unless this one has no results at all.
        """
        saved: dict[str, Any] = {"output_path": None, "errors_path": None}
        outdated = []
        for member, key, file in (
            ("output_file_id", "output_path", self._output),
            ("error_file_id", "errors_path", self._errors),
        ):
            if batch[member] is not None:
                _download(client, batch[member], file, progress)
                saved[key] = None if file is None else str(file)
            elif file is not None:
                outdated.append(file)
        has_results = batch["output_file_id"] is not None or batch["error_file_id"] is not None
        if self._replace and has_results:
            for file in outdated:
                _remove(file)
        return saved


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise CliError(f"{one_line(file)} cannot be removed: {error.strerror}.") from None


def _download(client: Client, file_id: str, file: Path | None, progress: _Progress) -> None:
    """Save a file; None: to stdout. A file that was not received completely does not replace another."""
    with progress.transfer("downloading" if file is None else f"downloading {file.name}") as advance:
        chunks = client.download(path("files", file_id, "content"))
        if file is None:
            for total, chunk in chunks:
                sys.stdout.buffer.write(chunk)
                advance(len(chunk), total)
            sys.stdout.buffer.flush()
            return
        part = file.with_name(f".{file.name}.part")
        try:
            with part.open("wb") as target:
                for total, chunk in chunks:
                    target.write(chunk)
                    advance(len(chunk), total)
            part.replace(file)
        except OSError as error:
            raise CliError(f"{one_line(file)} cannot be written: {error.strerror}.") from None
        finally:
            part.unlink(missing_ok=True)


def report(batch: dict[str, Any], saved: dict[str, Any], file: Path | None) -> None:
    """Print how a batch has ended, on stderr, and the paths of its files on stdout."""
    counts = batch["request_counts"]
    style = "dim" if batch["status"] == "completed" and not counts["failed"] else "red"
    usage = batch["usage"]
    tokens = f", {count(usage['input_tokens'])} tokens in, {count(usage['output_tokens'])} out" if usage else ""
    note(
        f"{batch['id']} {batch['status']}: {count(counts['completed'])} of {count(counts['total'])} requests completed,"
        f" {count(counts['failed'])} failed{tokens}",
        style=style,
    )
    errors = (batch["errors"] or {}).get("data", [])
    for error in errors[:MAX_ERRORS]:
        line = "" if error["line"] is None else f":{error['line']}"
        message = with_param(error["message"], error["param"])
        note(f"{file.name if file else batch['input_file_id']}{line}: {message}", style="red")
    if len(errors) > MAX_ERRORS:
        note(f"... and {len(errors) - MAX_ERRORS} more; --json shows all.", style="red")
    for key in ("output_path", "errors_path"):
        if saved[key] is not None:
            say(saved[key])


class _Progress:
    """Bars on stderr: of uploads, downloads and requests. Nothing is shown without a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet
        self._live = not quiet and sys.stderr.isatty()
        self._bars: Progress | None = None
        self._requests: TaskID | None = None
        self._problem: str | None = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @contextmanager
    def transfer(self, text: str, total: int | None = None) -> Iterator[Any]:
        """Show a bar; yields a function of the bytes that were added and, if it is known only now, the total."""
        if not self._live:
            yield lambda *_: None
            return
        bars = self._start()
        task = bars.add_task(one_line(text), total=total, done="")
        sent = 0

        def advance(number: int, total: int | None = total) -> None:
            nonlocal sent
            sent += number
            bars.update(task, advance=number, total=total, done=size(sent))

        yield advance
        bars.remove_task(task)

    def batch(self, batch: dict[str, Any]) -> None:
        """Show how many requests of a batch have ended."""
        self._problem = None
        if not self._live:
            return
        bars, counts = self._start(), batch["request_counts"]
        if self._requests is None:
            self._requests = bars.add_task("", total=None, done="")
        ended = counts["completed"] + counts["failed"]
        failed = f", {count(counts['failed'])} failed" if counts["failed"] else ""
        bars.update(
            self._requests,
            description=batch["status"],
            total=counts["total"] or None,
            completed=ended,
            done=f"{count(ended)} of {count(counts['total'])} requests{failed}",
        )

    def lost(self, problem: CliError, _delay_s: float) -> None:
        """Report once that the connection was lost and is tried again."""
        if str(problem) != self._problem:
            self._problem = str(problem)
            self.say(f"{problem} Trying again.")

    def say(self, text: str) -> None:
        """Print a line, above the bars."""
        if not self._shown:
            return
        if self._bars is None:
            note(text, style="dim")
        else:
            from rich.text import Text

            self._bars.console.print(Text(one_line(text), "dim"))

    def _start(self) -> Progress:
        if self._bars is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[done]}", markup=False),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=console(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self._bars


BATCH_COLUMNS = (
    Column("BATCH"),
    Column("STATUS"),
    Column("AGE", right=True, drop=1),
    Column("REQUESTS", right=True, drop=2),
    Column("COMPLETED", right=True, drop=3),
    Column("FAILED", right=True, drop=4),
    Column("ENDPOINT", drop=5),
)


def batches(
    context: typer.Context, limit: Limit = 20, after: After = None, everything: All = False, as_json: Json = False
) -> None:
    """List batches, newest first."""
    with connect(context) as client:
        show_list(
            client,
            "/v1/batches",
            {"after": after} if after else {},
            None if everything else limit,
            BATCH_COLUMNS,
            _row,
            as_json=as_json,
            empty="There are no batches. Create one:  headrace batch FILE",
        )


def _row(batch: dict[str, Any]) -> list[object]:
    return [
        batch["id"],
        status_text(batch["status"]),
        age(batch["created_at"]),
        *(count(batch["request_counts"][name]) for name in ("total", "completed", "failed")),
        batch["endpoint"],
    ]
