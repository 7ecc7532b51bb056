"""Tables of numbers about documents: written as parquet beside them, queried with DuckDB.

What must be decided over all documents at once, such as which of two is the same, is decided here:
a query spills to disk, so 50 million rows need no larger machine than 50.
"""

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from etils import epath
from pyarrow import parquet

from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.pipeline.lines import appearing

# Of DuckDB. Each thread has buffers that can not be spilled: of 64 cores' they would fill MEMORY.
MEMORY, THREADS = "300MB", 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROWS = 1 << 16  # that a writer holds before it writes them


class Database:
    """DuckDB within MEMORY and a view for each named list of parquet tables; in a `with` block,
    as (connection, temporary folder). Tables on gs:// are copied first. What does not fit into
    MEMORY goes to the system's folder for temporary files, TMPDIR.

    Raises, as the block ends:
      UserError: there is no room in TMPDIR.
    """

    def __init__(self, **views: list[epath.Path]) -> None:
        self._views = views

    def __enter__(self) -> tuple[duckdb.DuckDBPyConnection, Path]:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._connection = duckdb.connect()
        settings = {
            "memory_limit": MEMORY,
            "threads": THREADS,
            "temp_directory": folder,
            "preserve_insertion_order": "false",  # of what no query orders
        }
        for name, value in settings.items():
            self._connection.execute(f"set {name} = '{value}'")
        for name, tables in self._views.items():
            files = [str(_local(table, folder / name)) for table in tables]
            self._connection.read_parquet(files).create_view(name)
        return self._connection, folder

    def __exit__(self, *error: Any) -> None:
        self._connection.close()
        self._folder.cleanup()
        said = str(error[1])
        if isinstance(error[1], duckdb.OutOfMemoryException):  # TMPDIR took no more of it
            raise no_room(said.split("\n", 1)[0]) from error[1]
        lacking = [text for text in map(os.strerror, _NO_ROOM) if text in said]
        if isinstance(error[1], duckdb.IOException) and lacking:
            raise no_room(lacking[0]) from error[1]


def no_room(reason: str) -> UserError:
    """Of temporary files that could not be written."""
    return UserError(
        f"TMPDIR={tempfile.gettempdir()} has no room for temporary files ({reason}); make room "
        "there or set TMPDIR to a folder on a larger disk; the same command goes on where this one "
        "stopped"
    )


def _local(table: epath.Path, folder: Path) -> Path:
    if not in_cloud(table):
        return Path(table)
    folder.mkdir(exist_ok=True)
    (folder / table.name).write_bytes(table.read_bytes())
    return folder / table.name


class TableWriter:
    """Writes a table some rows at a time, in a `with` block; it appears when the block ends well.
    It is there then even without rows."""

    def __init__(self, file: epath.Path, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._columns: list[list[Any]] = [[] for _ in schema]
        self._rows = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "TableWriter":
        stream = self._stack.enter_context(appearing(self._file))
        self._writer = self._stack.enter_context(parquet.ParquetWriter(stream, self._schema))
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._stack.__exit__(*error)

    def write(self, *columns: Any) -> None:
        """Adds rows: a column each of the schema, numpy or Arrow arrays or lists of one length."""
        for column, held, field in zip(columns, self._columns, self._schema, strict=True):
            made = isinstance(column, pa.Array)
            held.append(column if made else pa.array(column, field.type))
        self._rows += len(columns[0])
        if self._rows >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            arrays = [pa.chunked_array(held) for held in self._columns]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
            self._columns, self._rows = [[] for _ in self._schema], 0


def copy(database: tuple[duckdb.DuckDBPyConnection, Path], query: str, file: epath.Path) -> int:
    """Writes what a query finds as a table, in its order; returns the number of rows."""
    connection, temporary = database
    made = temporary / "made.parquet"
    (rows,) = connection.execute(f"copy ({query}) to '{made}' (format parquet)").fetchall()[0]
    with made.open("rb") as source, appearing(file) as target:
        while data := source.read(1 << 24):
            target.write(data)
    made.unlink()
    return rows


def fixed(rows: np.ndarray) -> pa.Array:
    """Rows of bytes (n, width) as one column of blobs."""
    width = pa.binary(rows.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(
        width, len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )
