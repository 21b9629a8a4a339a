"""Tables as Parquet files, which are written while they are sent. They need pyarrow: the extra `parquet`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.domain.errors import InvalidRequest

if TYPE_CHECKING:
    import pyarrow

PARQUET = "application/vnd.apache.parquet"


async def load_pyarrow() -> None:
    """Import pyarrow, which takes a part of a second.

    Raises:
        InvalidRequest: it is not installed.
    """

    def load() -> None:
        import pyarrow.parquet  # noqa: F401

    try:
        await asyncio.to_thread(load)
    except ImportError:
        raise InvalidRequest(
            "format: this server cannot write Parquet, because pyarrow is not installed; the operator can install it"
            " with the extra `parquet`: pip install '.[parquet]'",
            param="format",
        ) from None


class ParquetFile:
    """A Parquet file, of which each call returns the bytes that are new. `load_pyarrow` must have been called.

    Without the bytes of `end`, which has the index of the file, readers refuse the file: it cannot be taken for a
    complete one. CPU-bound: call it with many rows in a thread.
    """

    def __init__(self, schema: Callable[[], pyarrow.Schema], metadata: Mapping[str, str]) -> None:
        """`metadata`: of the file."""
        import pyarrow.parquet

        self._sink = _Sink()
        self._schema = schema().with_metadata(dict(metadata))
        self._writer = pyarrow.parquet.ParquetWriter(self._sink, self._schema)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """Write rows, if there are any, as one group of the file."""
        import pyarrow

        if rows:
            self._writer.write_table(pyarrow.Table.from_pylist(list(rows), schema=self._schema))
        return self._sink.take()

    def end(self) -> bytes:
        """Write the end of the file."""
        self._writer.close()
        return self._sink.take()


class _Sink:
    """A file that is only written, from which what was written can be taken."""

    closed = False

    def __init__(self) -> None:
        self._new = bytearray()
        self._taken = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._new += data
        return size

    def tell(self) -> int:
        return self._taken + len(self._new)

    def take(self) -> bytes:
        found = bytes(self._new)
        self._taken += len(found)
        self._new.clear()
        return found

    def flush(self) -> None:
        """Do nothing: the bytes are taken."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
