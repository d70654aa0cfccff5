"""Data folders on disk: metadata.json and checksummed Parquet files, written aside and then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ultr import stopping
from ultr.data.raw_files import preparing_hint
from ultr.data.schema import CollectionMetadata, CountsMetadata, LogMetadata, check_schema
from ultr.errors import DataError
from ultr.exhaustion import memory_problem
from ultr.files import file_digest, json_digest, new_folder, write_json
from ultr.text import did_you_mean

SCHEMA = 1
LOG_FORMAT = "ultr-click-log"
COLLECTION_FORMAT = "ultr-collection"
COUNTS_FORMAT = "ultr-counts"
SCHEMAS: dict[str, type[msgspec.Struct]] = {
    LOG_FORMAT: LogMetadata,
    COLLECTION_FORMAT: CollectionMetadata,
    COUNTS_FORMAT: CountsMetadata,
}
_KINDS = {LOG_FORMAT: "click log", COLLECTION_FORMAT: "collection of graded lists", COUNTS_FORMAT: "counts"}
QUERIES_FILE = "queries.parquet"
DOCUMENTS_FILE = "documents.parquet"
NAMED_BY_PLACE = "documents_named_by_place"  # key of a report: documents that their files give no name
METADATA_FILE = "metadata.json"
CONSECUTIVE = "consecutive"  # "ranks" of a file's record where they are 1, 2, ... in every row

OVERWRITE_FIX = "Choose another folder, or pass --overwrite (in Python: overwrite=True)."

PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@contextlib.contextmanager
def new_data_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Makes a data folder, whole or not at all.

    Yields an empty folder beside `path` that becomes `path` when the block ends without an exception.

    Args:
      path: the folder to make; an empty folder may already stand there.
      overwrite: whether a data folder that stands there may be replaced. Anything else is never replaced.

    Raises:
      DataError: something stands at `path` that must not be replaced.
    """
    with new_folder(path, check=partial(check_replaceable, overwrite=overwrite)) as aside:
        yield aside


def check_replaceable(target: Path, *, overwrite: bool) -> None:
    """Checks that a data folder may be written to a place.

    Args:
      target: where; nothing or an empty folder may stand there.
      overwrite: whether a click log or a collection may stand there too.

    Raises:
      DataError: something else stands there.
    """
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise DataError("something already stands here", fix=OVERWRITE_FIX, file=target)
    if prepared_format(target) is None:
        raise DataError(
            "only a click log or a collection is overwritten, and this is neither",
            fix="Choose another folder or remove this one yourself.",
            file=target,
        )


def prepared_format(folder: Path) -> str | None:
    """Reads whether a folder is a click log (`LOG_FORMAT`) or a collection (`COLLECTION_FORMAT`); None for others."""
    try:
        found = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if found in (LOG_FORMAT, COLLECTION_FORMAT) else None


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Writes metadata.json; the keys keep their order."""
    write_json(folder / METADATA_FILE, metadata)


def read_metadata(path: str | os.PathLike[str], formats: Sequence[str]) -> dict[str, Any]:
    """Reads and checks metadata.json of a data folder.

    Args:
      path: the folder.
      formats: the formats that are accepted.

    Raises:
      DataError: no such folder or file, not JSON, another format than `formats`, another schema, or a field that is
        missing, mistyped or negative.
    """
    folder = Path(path)
    file = folder / METADATA_FILE
    make = "Make one with `ultr prepare` or `ultr simulate`."
    if folder.is_file():
        raise DataError(
            f"expected a prepared folder ({' or '.join(_KINDS[name] for name in formats)}), found a file",
            fix=preparing_hint(
                folder,
                log=COLLECTION_FORMAT not in formats or len(formats) > 1,
                collection=COLLECTION_FORMAT in formats,
            ),
            file=folder,
        )
    if not folder.is_dir():
        raise DataError("expected the folder of a click log or collection, found none", fix=make, file=folder)
    if not file.is_file():
        raise DataError("expected a metadata.json, found none: not a prepared folder", fix=make, file=folder)
    try:
        metadata: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"the file is damaged: expected JSON, found {error}", fix="Prepare the data again.", file=file
        ) from error
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if list(formats) == [LOG_FORMAT] and found == COLLECTION_FORMAT:
        raise DataError(
            f"this is a collection of graded lists ({COLLECTION_FORMAT}); a click log ({LOG_FORMAT}) is needed here",
            fix="`ultr simulate` makes one from it, `ultr prepare` from raw clicks.",
            file=folder,
        )
    if list(formats) == [COLLECTION_FORMAT] and found == LOG_FORMAT:
        raise DataError(
            f"this is a click log ({LOG_FORMAT}); a collection of graded lists ({COLLECTION_FORMAT}) is needed here",
            fix="`ultr prepare` makes one from graded lists, with --format letor or qrels.",
            file=folder,
        )
    if found not in formats:
        raise DataError(f"expected one of {list(formats)}, found {found!r}", fix=make, file=file, field="format")
    schema = metadata.get("schema")
    if schema != SCHEMA:
        raise DataError(
            f"prepared with schema {schema!r}, this version reads {SCHEMA}",
            fix="Prepare the data again with this version, or use the version that wrote it.",
            file=file,
            field="schema",
        )
    check_schema(metadata, SCHEMAS[str(found)], file)
    return metadata


def missing_split(split: str, known: Iterable[str], folder: Path, held: str) -> DataError:
    """Makes the error about a split that a folder does not have, or that is empty.

    Args:
      split: the name that was asked for.
      known: names of the folder's splits.
      folder: the folder.
      held: what the folder holds in all, such as "12 sessions".
    """
    names = sorted(known)
    if not names:
        return DataError(
            f"prepared without splits, so that there is no {split!r}",
            fix="Prepare it again with --split train=.8,valid=.1,test=.1 (in Python: split={'train': 0.8, ...}), "
            "or open all of it and use .split(...).",
            file=folder,
            field="split",
        )
    if split in names:
        return DataError(
            f"the split {split!r} is empty: it has none of the {held}",
            fix="Prepare the data again with a larger share for it, or without it.",
            file=folder,
            field="split",
        )
    return DataError(
        f"expected one of the splits {names}, found {split!r}{did_you_mean(split, names)}", file=folder, field="split"
    )


@contextlib.contextmanager
def parquet_errors(file: Path) -> Iterator[None]:
    """Turns the exceptions that pyarrow raises on damaged files into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if memory_problem(error) is not None:
            raise
        text = " ".join(str(error).split())
        raise DataError(
            f"the Parquet file cannot be read: {text}", fix="Copy or prepare it again.", file=file
        ) from error


def footer_checksum(file: Path) -> str:
    """Computes the CRC-32 (hex) of a Parquet file's footer, which page checksums do not cover."""
    with open(file, "rb") as stream:
        stream.seek(-8, os.SEEK_END)
        size = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - size, os.SEEK_END)
        return f"{zlib.crc32(stream.read(size)):08x}"


def file_record(file: Path, rows: int) -> dict[str, Any]:
    """Makes a Parquet file's record for metadata.json: name, rows, bytes, checksum of the footer, digest of all."""
    return {
        "name": file.name,
        "rows": rows,
        "bytes": file.stat().st_size,
        "footer": footer_checksum(file),
        "digest": file_digest(file),
    }


def content_fingerprint(metadata: Mapping[str, Any]) -> str:
    """Computes the hex SHA-256 of what metadata records about the content of a folder's files, without reading these.

    Folders that hold the same sessions, documents, grades (on the same scale) and features in the same order have the
    same fingerprint, whatever they were made from. Files whose record has no digest count by their size
    and the checksum of their footer.
    """
    vocabulary = metadata["vocabulary"]
    names = ("format", "files", "queries", "documents", "features", "impression_features", "context")
    content = [{name: metadata.get(name) for name in names}, vocabulary.get("fingerprint"), vocabulary.get("files")]
    if metadata.get("max_grade") is not None:  # older folders do not tell it, and keep their fingerprint
        content.append(metadata["max_grade"])
    return json_digest(content)


def open_parquet(folder: Path, record: Mapping[str, Any]) -> pq.FileMetaData:
    """Reads the footer of a recorded file, after checking that the file is the one that was written.

    Args:
      folder: the data folder.
      record: of `file_record`; only `name` and `rows` are needed, other entries are checked where they exist.

    Raises:
      DataError: the file is missing, truncated, damaged or not the recorded one.
    """
    file = folder / record["name"]
    again = "Copy or prepare it again."
    if not file.is_file():
        raise DataError("the metadata lists this file, and it is missing", fix=again, file=file)
    found = file.stat().st_size
    if record.get("bytes", found) != found:
        raise DataError(f"expected {record['bytes']:,} bytes, found {found:,}", fix=again, file=file)
    with parquet_errors(file):
        footer = pq.read_metadata(file)
        if record.get("footer") not in (None, footer_checksum(file)):
            raise DataError("the Parquet footer fails its checksum", fix=again, file=file)
    if footer.num_rows != record["rows"]:
        raise DataError(f"expected {record['rows']:,} rows, found {footer.num_rows:,}", fix=again, file=file)
    return footer


def read_row_groups(
    file: Path, groups: Iterable[int], columns: Sequence[str], *, footer: pq.FileMetaData, threads: bool = True
) -> pa.Table:
    """Reads row groups and verifies their checksums.

    Args:
      file: the Parquet file.
      groups: indices of the row groups.
      columns: names of the columns.
      footer: of `open_parquet`.
      threads: whether columns are decoded in parallel.

    Raises:
      DataError: a page fails its checksum, or the file cannot be read.
    """
    stopping.check()
    picked = list(groups)
    with parquet_errors(file), pq.ParquetFile(file, metadata=footer, page_checksum_verification=True) as source:
        table = source.read_row_groups(picked, columns=list(columns), use_threads=threads)
    rows = sum(footer.row_group(i).num_rows for i in picked)
    if len(table) != rows:  # a damaged page header, which no checksum covers, makes the reader skip the page
        raise DataError(f"expected {rows:,} rows, found {len(table):,}", fix="Copy or prepare it again.", file=file)
    return table


def check_columns(schema: pa.Schema, expected: Mapping[str, str], file: Path) -> None:
    """Checks that a file's schema holds columns of the expected types.

    Args:
      schema: of the file.
      expected: column -> one or several names of types, as of `type_name`, joined by " or ".
      file: the file that errors name.

    Raises:
      DataError: names the column, the expected and the found type.
    """
    for name, kinds in expected.items():
        index = schema.get_field_index(name)
        if index < 0:
            raise DataError(
                f"expected a column of type {kinds}, found the columns {schema.names}",
                fix="Prepare it again.",
                file=file,
                field=name,
            )
        found = type_name(schema.field(index).type)
        if found not in kinds.split(" or "):
            raise DataError(f"expected {kinds}, found {found}", fix="Prepare it again.", file=file, field=name)


def type_name(kind: pa.DataType) -> str:
    """Names a type regardless of nullability and names of fields: "list<int32>", "string", ..."""
    if pa.types.is_fixed_size_list(kind):
        return f"list<{kind.value_type}>[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{kind.value_type}>"
    if pa.types.is_large_string(kind):
        return "string"
    return str(kind)


def as_numpy(array: pa.Array) -> np.ndarray:
    """Converts an array without nulls to numpy; numbers are not copied.

    Numbers are not converted by pyarrow's `to_numpy`, since that imports pandas where it is installed, which takes
    half a second.
    """
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return np.from_dlpack(array)
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values
