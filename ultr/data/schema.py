"""The schema of metadata.json: which fields a prepared folder has, of which types and sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ultr.errors import DataError

Count = Annotated[int, msgspec.Meta(ge=0)]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]  # ids and ranks are 32-bit integers
_NO_FOLDERS, _DIGITS = r"^[^/]+$", "^[0-9]+$"
FileName = Annotated[str, msgspec.Meta(pattern=_NO_FOLDERS)]
Length = Annotated[str, msgspec.Meta(pattern=_DIGITS)]
_WORDS = {
    "object": "mapping",
    "array": "list",
    f"str matching regex '{_NO_FOLDERS}'": "a file's name without folders",
    f"str matching regex '{_DIGITS}'": "digits",
}


class FileRecord(msgspec.Struct):
    """The record of a Parquet file (`ultr.data.storage.file_record`)."""

    name: FileName
    rows: Count
    bytes: Count | None = None
    footer: str | None = None
    digest: str | None = None
    ranks: str | None = None


class Identity(msgspec.Struct):
    """The identity of a vocabulary, with that of the one that it extends."""

    fingerprint: str
    documents: Id
    queries: Id | None = None
    parent: Identity | None = None


class VocabularyRecord(msgspec.Struct):
    """The record of queries.parquet and documents.parquet."""

    fingerprint: str
    parent: Identity | None = None
    files: list[FileRecord] = []
    named_by_place: bool = False


class CollectionMetadata(msgspec.Struct):
    """The fields of a collection."""

    queries: Id
    documents: Id
    features: list[str]
    vocabulary: VocabularyRecord
    splits: dict[str, Count]
    report: dict[str, Any] = {}


class LogMetadata(msgspec.Struct):
    """The fields of a click log."""

    sessions: Count
    queries: Id
    documents: Id
    ranks: Id
    lengths: dict[Length, Count]
    clicks: Count
    impressions: Count
    files: list[FileRecord]
    features: list[str]
    impression_features: list[str]
    context: dict[str, Any]  # checked with the columns of that name
    splits: dict[str, Count]
    vocabulary: VocabularyRecord
    report: dict[str, Any]
    truth: dict[str, Any] | None = None


class CountsMetadata(msgspec.Struct):
    """The fields of counts."""

    by: str
    sessions: Count
    weight: Annotated[float, msgspec.Meta(ge=0)]
    queries: Id
    documents: Id
    known: Id
    ranks: Id
    features: list[str]
    files: list[FileRecord]
    identity: dict[str, Any]
    vocabulary: VocabularyRecord


def check_schema(metadata: Mapping[str, Any], kind: type[msgspec.Struct], file: Path) -> None:
    """Checks that metadata has the fields of a kind; fields that are not known are those of a newer version.

    Raises:
      DataError: names the field, what was expected and what was found.
    """
    try:
        found = msgspec.convert(metadata, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        field, problem = describe_problem(error, metadata)
        raise DataError(problem, fix="Prepare it again.", file=file, field=field) from error
    if isinstance(found, CountsMetadata) and not math.isfinite(found.weight):
        raise DataError(
            f"expected a finite number, found {found.weight}", fix="Prepare it again.", file=file, field="weight"
        )
    if isinstance(found, CollectionMetadata | LogMetadata | CountsMetadata):
        rows = {"queries.parquet": found.queries, "documents.parquet": found.documents}
        for record in found.vocabulary.files:
            if record.name in rows and record.rows != rows[record.name]:
                raise DataError(
                    f"expected {record.rows:,} as {record.name} has rows, found {rows[record.name]:,}",
                    fix="Prepare it again.",
                    file=file,
                    field=record.name.removesuffix(".parquet"),
                )


def describe_problem(error: Exception, value: Any) -> tuple[str | None, str]:
    """Words an error of msgspec: (the field with its dots, None for the whole value; what was expected and found)."""
    if isinstance(error, RecursionError):
        return None, "expected plain facts, found values nested too deeply"
    text, _, place = str(error).partition(" - at `")
    if place.startswith("key` in "):  # a name of a mapping, which msgspec does not say
        text, place = f"{text} as names", place.removeprefix("key` in `")
    path = place.strip("`").removeprefix("$").lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(.+)`", text):
        return (f"{path}.{missing[1]}" if path else missing[1]), "expected a value, found none"
    problem, _, kind = (text[0].lower() + text[1:]).replace("`", "").partition(", got ")
    for pattern, words in _WORDS.items():
        problem = problem.replace(pattern, words)
    known, exact = value, "as names" not in problem
    for name in re.findall(r"[^.\[\]]+|\.\.\.", path):
        if isinstance(known, Mapping) and name in known:
            known = known[name]
        elif isinstance(known, list) and name.isdecimal():
            known = known[int(name)]
        else:
            exact = False
    shown = repr(known) if exact else kind or "another value"
    return path or None, f"{problem}, found {shown if len(shown) <= 80 else shown[:77] + '...'}"
