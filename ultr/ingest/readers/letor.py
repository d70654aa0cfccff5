"""Reads LETOR / SVMlight files: `grade qid:query 1:value 2:value ... # comment`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.arguments import LARGEST_GRADE
from ultr.data.storage import NAMED_BY_PLACE
from ultr.errors import DataError
from ultr.ingest.engine import Engine
from ultr.ingest.positions import file_and_row, file_start
from ultr.ingest.readers.base import ColumnRequest, DocumentFeatures, GradedPairs
from ultr.ingest.text_files import BLOCK_BYTES, line_blocks
from ultr.ingest.values import LARGEST_FEATURE, LARGEST_FLOAT32

NOT_JUDGED = -1
FORM = "grade qid:query 1:value 2:value ..."


@dataclass
class LetorDocuments:
    """The D graded documents of LETOR files, in the order of the files.

    Attributes:
      at: [D] int64 positions.
      query, document: [D] names. A document without a docid in its comment is numbered within its query.
      label: [D] float32 grades; NaN where a document is not judged (grade -1).
      features: [D, F] float32; features that a line leaves out are 0.
      report: how many rows were read and left out.
      by_place: [D] whether the document has no docid.
    """

    at: np.ndarray
    query: pa.StringArray
    document: pa.StringArray
    label: np.ndarray
    features: np.ndarray
    report: dict[str, int]
    by_place: np.ndarray


@dataclass
class _ParsedBlock:
    at: np.ndarray
    query: pa.Array
    docid: pa.Array
    label: np.ndarray
    features: np.ndarray
    beyond: int


def read_letor(engine: Engine, files: list[Path], request: ColumnRequest) -> GradedPairs:
    """Reads LETOR files; see `parse_letor`."""
    found = parse_letor(files, width=request.feature_count)
    slots = np.arange(len(found.at))
    label = pa.array(found.label, mask=np.isnan(found.label))
    table = pa.table({"at": found.at, "slot": slots, "query": found.query, "document": found.document, "label": label})

    def fill(slots: np.ndarray, targets: np.ndarray, out: np.ndarray) -> None:
        out[targets] = found.features[slots]

    width = found.features.shape[1]
    features = None
    if width:
        features = DocumentFeatures(
            [str(i) for i in range(1, width + 1)],
            fill,
            counted=True,
            by_place=found.by_place,
            where=lambda slot: file_and_row(files, int(found.at[slot])),
        )
    warnings = []
    if beyond := found.report.get("values_of_further_features", 0):
        warnings.append(f"{beyond:,} values of features beyond the first {width:,} were left out, as was asked for")
    return GradedPairs(engine.load("rows", table.to_batches(), table.schema), found.report, features, warnings)


def parse_letor(files: Sequence[Path], *, width: int | None = None, block_bytes: int = BLOCK_BYTES) -> LetorDocuments:
    """Parses LETOR files. The first of several lines about the same document of a query is kept.

    Args:
      files: the files; no two may share a query.
      width: the number F of features, of which further ones are left out and counted; None: the largest that a line
        names.
      block_bytes: bytes of text to parse at a time.

    Raises:
      DataError: a line of another form, a grade or feature that is not a number or out of range, feature ids that
        do not increase from at least 1, or a query whose lines do not stand together; names the file and row.
    """
    parts = []
    for number, path in enumerate(files):
        for row, text in line_blocks(path, block_bytes=block_bytes):
            part = _parse_block(text, np.arange(row, row + len(text)) + file_start(number), files, width)
            if len(part.at):
                parts.append(part)
    if not parts:
        raise DataError("expected lines of documents, found none", file=files[0])
    at = np.concatenate([p.at for p in parts])
    query = pa.concat_arrays([p.query for p in parts])
    docid = pa.concat_arrays([p.docid for p in parts])
    label = np.concatenate([p.label for p in parts])
    beyond = sum(p.beyond for p in parts)
    features = np.zeros((len(at), width or max(p.features.shape[1] for p in parts)), np.float32)
    start = 0
    while parts:  # each block is freed once it is copied
        block = parts.pop(0).features
        features[start : start + len(block), : block.shape[1]] = block
        start += len(block)
    starts = _query_starts(query, at, files)
    by_place = docid.is_null().to_numpy(zero_copy_only=False)
    document = _document_names(docid, starts)
    keep = _first_of_query(document, starts)
    report = {"rows": len(at), "duplicate_documents": int((~keep).sum())}
    counts = {"not_judged": int(np.isnan(label).sum()), "values_of_further_features": beyond}
    counts[NAMED_BY_PLACE] = int((by_place & keep).sum())
    report |= {name: count for name, count in counts.items() if count}
    if not keep.all():
        at, label, features, by_place = at[keep], label[keep], features[keep], by_place[keep]
        query, document = query.filter(pa.array(keep)), document.filter(pa.array(keep))
    return LetorDocuments(at, query, document, label, features, report, by_place)


def _parse_block(text: pa.StringArray, at: np.ndarray, files: Sequence[Path], width: int | None) -> _ParsedBlock:
    def fail(row: int, problem: str, field: str | None = None, fix: str = "") -> DataError:
        return DataError(problem, field=field, fix=fix, **file_and_row(files, int(at[row])))

    split = pc.split_pattern(text, "#", max_splits=1)
    starts = split.offsets.to_numpy()[:-1]
    head = pc.ascii_trim_whitespace(split.values.take(pa.array(starts)))
    keep = pc.not_equal(head, "")
    head, text, at = head.filter(keep), text.filter(keep), at[keep.to_numpy(zero_copy_only=False)]
    count = len(head)
    docid = pc.struct_field(pc.extract_regex(text, r"#.*?\bdocid\s*=\s*(?P<id>\S+)"), "id")
    tokens = pc.ascii_split_whitespace(head)
    lengths = pc.list_value_length(tokens).to_numpy()
    first, flat = tokens.offsets.to_numpy()[:-1], tokens.flatten()
    if count and (lengths < 2).any():
        row = int((lengths < 2).argmax())
        raise fail(row, f"expected '{FORM}', found {head[row].as_py()[:60]!r}")
    label, bad = _numbers(flat.take(pa.array(first)))
    if bad is None and count:
        wrong = ~(np.isfinite(label) & ((label >= 0) | (label == NOT_JUDGED)) & (label <= LARGEST_GRADE))
        bad = int(wrong.argmax()) if wrong.any() else None
    if bad is not None:
        found = flat[int(first[bad])].as_py()
        expected = f"{NOT_JUDGED} (not judged) or a grade from 0 to {LARGEST_GRADE}"
        raise fail(bad, f"expected {expected}, found {found!r}", "label")
    label = np.where(label == NOT_JUDGED, np.nan, label)
    query = flat.take(pa.array(first + 1))
    named = pc.match_substring_regex(query, r"^qid:\S").to_numpy(zero_copy_only=False)
    if not named.all():
        row = int((~named).argmax())
        raise fail(row, f"expected 'qid:' and the query after the grade, found {query[row].as_py()!r}", "qid")
    query = pc.utf8_slice_codeunits(query, 4)
    is_feature = np.ones(len(flat), bool)
    is_feature[first] = is_feature[first + 1] = False
    features, beyond = _features(flat.filter(pa.array(is_feature)), lengths - 2, fail, width)
    return _ParsedBlock(at, query, docid, label.astype(np.float32), features, beyond)


def _features(
    tokens: pa.StringArray, lengths: np.ndarray, fail: Callable[..., DataError], limit: int | None
) -> tuple[np.ndarray, int]:
    """Parses 'id:value' tokens, `lengths` [n] of which belong to each line, to features [n, F].

    Returns:
      the features, and how many values of features beyond the first `limit` were left out.
    """
    line = np.repeat(np.arange(len(lengths)), lengths)
    halves = pc.split_pattern(tokens, ":")
    sizes = pc.list_value_length(halves).to_numpy()
    if (sizes != 2).any():
        at = int((sizes != 2).argmax())
        raise fail(int(line[at]), f"expected features as id:value, found {tokens[at].as_py()!r}")
    flat = halves.flatten()
    even = np.arange(0, len(flat), 2)
    ids, at_bad = _numbers(flat.take(pa.array(even)), pa.int32())
    if at_bad is None and len(ids):
        wrong = (ids < 1) | (ids > LARGEST_FEATURE)
        at_bad = int(wrong.argmax()) if wrong.any() else None
    if at_bad is not None:
        raise fail(
            int(line[at_bad]),
            f"expected feature ids from 1 to {LARGEST_FEATURE:,}, found {flat[2 * at_bad].as_py()!r}",
            None,
            "Ids count from 1: add 1 to every id of a file that counts from 0.",
        )
    values, at_bad = _numbers(flat.take(pa.array(even + 1)))
    if at_bad is None and len(values):
        wrong = ~(np.abs(values) <= LARGEST_FLOAT32)
        at_bad = int(wrong.argmax()) if wrong.any() else None
    if at_bad is not None:
        raise fail(
            int(line[at_bad]), f"expected a finite number, found {flat[2 * at_bad + 1].as_py()!r}", str(ids[at_bad])
        )
    again = np.flatnonzero((ids[1:] <= ids[:-1]) & (line[1:] == line[:-1]))
    if len(again):
        at = int(again[0]) + 1
        raise fail(int(line[at]), f"expected increasing feature ids, found {ids[at]} after {ids[at - 1]}")
    width = int(ids.max(initial=0))
    if width and (lengths == width).all():  # ids increase, so that these are 1 to width
        out = values.astype(np.float32).reshape(-1, width)
        return (out, 0) if limit is None else (out[:, :limit], out[:, limit:].size)
    inside = slice(None) if limit is None else ids <= limit
    out = np.zeros((len(lengths), width if limit is None else min(width, limit)), np.float32)
    out[line[inside], ids[inside] - 1] = values[inside]
    return out, 0 if limit is None else int((ids > limit).sum())


def _numbers(tokens: pa.StringArray, kind: pa.DataType | None = None) -> tuple[np.ndarray, int | None]:
    """Parses strings as numbers; returns the numbers, and the index of the first string that is none, or None."""
    kind = kind or pa.float64()
    try:
        return tokens.cast(kind).to_numpy(), None
    except pa.ArrowInvalid:
        low, high = 0, len(tokens)  # tokens[:low] are numbers, tokens[:high] are not all
        while high - low > 1:
            middle = (low + high) // 2
            try:
                tokens.slice(low, middle - low).cast(kind)
                low = middle
            except pa.ArrowInvalid:
                high = middle
        return np.zeros(0, kind.to_pandas_dtype()), low


def _query_starts(query: pa.StringArray, at: np.ndarray, files: Sequence[Path]) -> np.ndarray:
    """Finds where the lines of each query start, [Q + 1], and checks that the lines of a query are consecutive."""
    codes = query.dictionary_encode().indices.to_numpy()
    starts = np.append(0, np.flatnonzero(codes[1:] != codes[:-1]) + 1)
    seen = codes[starts]  # codes are 0, 1, ... in the order in which queries first appear
    again = np.flatnonzero(seen != np.arange(len(seen)))
    if len(again):
        row = int(starts[again[0]])
        raise DataError(
            f"expected the lines of a query to stand together, found query {query[row].as_py()!r} again",
            fix="Sort the file by query, and give files that share no query.",
            field="qid",
            **file_and_row(files, int(at[row])),
        )
    return np.append(starts, len(codes))


def _document_names(docid: pa.StringArray, starts: np.ndarray) -> pa.StringArray:
    if not docid.null_count:
        return docid
    within = np.arange(1, len(docid) + 1) - np.repeat(starts[:-1], np.diff(starts))
    return pc.if_else(pc.is_valid(docid), docid, pa.array(within).cast(pa.string()))


def _first_of_query(document: pa.StringArray, starts: np.ndarray) -> np.ndarray:
    """Tells for each line [D] whether its document comes for the first time in its query."""
    codes = document.dictionary_encode().indices.to_numpy().astype(np.int64)
    pairs = codes * len(starts) + np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    keep = np.zeros(len(pairs), bool)
    keep[np.unique(pairs, return_index=True)[1]] = True
    return keep
