"""The rows of a table, one by one: CSV, JSON-lines or Parquet, as untrusted input."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from data_pipelines.shards import MAX_TEXT_BYTES

KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BATCH = 256  # rows of Parquet in memory
_MAX_ROW_GROUP = 2**30


@dataclass(frozen=True)
class Row:
    """One row: its number for messages ("line 7"), and its values by column, or what is wrong."""

    where: str
    values: dict[str, Any]
    fault: str | None = None


def table_kind(path: Path) -> str:
    """Which kind of table a file is, by its extension.

    Raises:
        ValueError: None that is known, or there is no such file.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: not the name of a table; known are {', '.join(KINDS)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such table")
    return kind


def read_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Reads a table's rows in order.

    Args:
        path: The table; the extension says which kind.
        wanted: Columns to read; those that are not there are left out of the rows.

    Raises:
        ValueError: The file is not a table of its kind. Single bad rows come as a `fault`.
    """
    kind = table_kind(path)
    if kind == "parquet":
        yield from _parquet_rows(path, wanted)
        return
    try:
        with open(path, encoding="utf-8-sig", newline="" if kind != "jsonl" else None) as file:
            rows = _json_rows(file) if kind == "jsonl" else _csv_rows(path, file, kind)
            for row in rows:
                kept = {name: row.values[name] for name in wanted if name in row.values}
                yield Row(row.where, kept, row.fault)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a table in UTF-8 ({error})") from None


def column_names(path: Path) -> list[str] | None:
    """The columns that the table says it has; None for JSON-lines, whose rows each have their own.

    Raises:
        ValueError: As `read_rows`.
    """
    kind = table_kind(path)
    if kind == "parquet":
        with _open_parquet(path) as file:
            return [str(name) for name in file.schema_arrow.names]
    if kind == "jsonl":
        return None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _header(path, _reader(file, kind))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a table in UTF-8 ({error})") from None


def _lines(file: TextIO) -> Iterator[str]:
    """Lines of bounded length: one without an end would fill the memory."""
    while line := file.readline(MAX_TEXT_BYTES):
        if len(line) == MAX_TEXT_BYTES and not line.endswith("\n"):
            raise csv.Error(f"a line is longer than {MAX_TEXT_BYTES} characters")
        yield line


def _reader(file: TextIO, kind: str) -> Any:
    return csv.reader(_lines(file), delimiter="\t" if kind == "tsv" else ",", strict=True)


def _header(path: Path, reader: Any) -> list[str]:
    try:
        columns: list[str] = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: not a table ({error})") from None
    if len(set(columns)) != len(columns):
        raise ValueError(f"{path}, line 1: two columns have one name; rename one")
    return columns


def _csv_rows(path: Path, file: TextIO, kind: str) -> Iterator[Row]:
    reader = _reader(file, kind)
    columns = _header(path, reader)
    line = reader.line_num + 1
    try:
        for cells in reader:
            if cells:  # else the line is blank
                fault = None
                if len(cells) != len(columns):
                    fault = f"bad row: {len(cells)} cells under {len(columns)} columns"
                yield Row(f"line {line}", dict(zip(columns, cells, strict=False)), fault)
            line = reader.line_num + 1
    except csv.Error as error:  # where the next row starts is anyone's guess
        raise ValueError(f"{path}, line {line}: not a table ({error})") from None


def _json_rows(file: TextIO) -> Iterator[Row]:
    number = 0
    while line := file.readline(MAX_TEXT_BYTES):
        number += 1
        where = f"line {number}"
        if len(line) == MAX_TEXT_BYTES and not line.endswith("\n"):
            while (rest := file.readline(MAX_TEXT_BYTES)) and not rest.endswith("\n"):
                pass
            yield Row(where, {}, f"bad row: longer than {MAX_TEXT_BYTES} characters")
            continue
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(where, {}, f"bad row: not valid JSON ({error})")
            continue
        if isinstance(values, dict):
            yield Row(where, values)
        else:
            yield Row(where, {}, f"bad row: a {type(values).__name__}, not a JSON object")


def _open_parquet(path: Path, dictionaries: Sequence[str] = ()) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: reading Parquet needs pyarrow; "
            "install it with `pip install 'simple-diffusion[parquet]'`"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path, read_dictionary=list(dictionaries))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with _open_parquet(path) as file:
        texts = _text_columns(path, file.schema_arrow, wanted)
        columns = [name for name in wanted if name in file.schema_arrow.names]
    import pyarrow

    # A text that is stored once and meant a million times is then held once.
    with _open_parquet(path, texts) as file:
        number = 0
        try:
            for group in range(file.num_row_groups):
                _check_row_group(path, file.metadata.row_group(group), group, columns)
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                    for name in texts:
                        _check_lengths(path, name, batch.column(name))
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(f"row {number}", values)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: damaged after row {number} ({error})") from None


def _text_columns(path: Path, schema: Any, wanted: Sequence[str]) -> list[str]:
    """The wanted columns that hold text; any other kind but integers is refused."""
    from pyarrow import types

    found = []
    for name in wanted:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        value = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_string(value) or types.is_large_string(value):
            found.append(name)
        elif not (types.is_integer(value) or types.is_null(value)):
            raise ValueError(f"{path}: column {name!r} holds {kind}, not text or integers")
    return found


def _check_lengths(path: Path, name: str, array: Any) -> None:
    import pyarrow
    import pyarrow.compute

    values = array.dictionary if pyarrow.types.is_dictionary(array.type) else array
    longest = pyarrow.compute.max(pyarrow.compute.binary_length(values)).as_py() or 0
    if longest > MAX_TEXT_BYTES:
        raise ValueError(
            f"{path}: a text in the column {name!r} has {longest} bytes; "
            f"the limit is {MAX_TEXT_BYTES}"
        )


def _check_row_group(path: Path, group: Any, number: int, columns: Sequence[str]) -> None:
    """Refuses a row group whose wanted columns would fill the memory."""
    sizes = [group.column(index) for index in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in sizes if c.path_in_schema in columns)
    if size > _MAX_ROW_GROUP:
        raise ValueError(
            f"{path}: row group {number} has {size} bytes in the columns "
            f"{', '.join(columns)}; the limit is {_MAX_ROW_GROUP}"
        )
