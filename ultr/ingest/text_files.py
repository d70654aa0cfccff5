"""Opens text files: decompressed, whatever their line ends are, and with an error that names the row of bad text."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultr.errors import DataError
from ultr.ingest.positions import file_start

BLOCK_BYTES = 1 << 24  # bytes of text that are read at a time
# First bytes of a compressed file -> its compression, whatever the file is called.
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
# First bytes of files that are compressed or packed in ways that are not read -> (what they are, what unpacks them).
_UNREAD = {
    b"\xfd7zXZ\x00": ("xz", "xz -d"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!\x1a\x07": ("rar", "unrar x"),
    b"\x1f\x9d": ("compress", "uncompress"),
}
_BZIP2_BLOCK = b"1AY&SY"  # what follows on "BZh" and a digit, which text may begin with
LINES = pa.schema([("at", pa.int64()), ("text", pa.string())])


def compression(path: Path) -> str | None:
    """Tells how a file is compressed by its first bytes: gzip, bz2, zstd or lz4; None: not at all.

    Raises:
      DataError: it is compressed in another way.
    """
    with open(path, "rb") as stream:
        start = stream.read(10)
    for magic, (kind, unpack) in _UNREAD.items():
        if start.startswith(magic):
            excel = " (Excel workbooks are zip files too: save them as CSV)" if kind == "zip" else ""
            raise DataError(
                f"expected text, as it is or compressed with gzip, bzip2, zstd or lz4, found a file compressed with "
                f"{kind}",
                fix=f"Unpack it first, such as with `{unpack} {path.name}`{excel}.",
                file=path,
            )
    found = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    return None if found == "bz2" and start[4:] != _BZIP2_BLOCK else found


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """Opens a file as a binary stream, decompressed where it is compressed.

    Raises:
      DataError: the file is compressed in a way that is not read; in the block, where it is cut off or damaged.
    """
    kind = compression(path)
    try:
        with pa.input_stream(str(path), compression=kind) as stream:
            yield stream
    except (OSError, pa.ArrowException) as error:
        if kind is None:
            raise
        text = " ".join(str(error).split())
        raise DataError(
            f"expected a complete {kind} file, found one that cannot be decompressed: {text}",
            fix="Copy it again; a file that was cut off ends too early.",
            file=path,
        ) from error


def byte_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yields the decompressed bytes of a file in blocks; errors as of `open_bytes`."""
    with open_bytes(path) as stream:
        while block := stream.read(block_bytes):
            yield block


@dataclass(frozen=True)
class PlainFile:
    """A text file without compression, as the query engine reads it.

    Attributes:
      path: the file itself, or its decompressed copy.
      has_quotes: whether a double quote stands anywhere in it.
    """

    path: Path
    has_quotes: bool


def plain_file(path: Path, copy: Path) -> PlainFile:
    """Decompresses a file where it is compressed, and looks for quotes in it.

    The engine would read some compressed files that are cut off or damaged to their last good line without a word.

    Args:
      path: the file.
      copy: where to write a compressed file without its compression.

    Raises:
      DataError: as of `open_bytes`.
    """
    if compression(path) is None:
        return PlainFile(path, any(b'"' in block for block in byte_blocks(path)))
    quotes = False
    with open(copy, "wb") as out:
        for block in byte_blocks(path):
            quotes = quotes or b'"' in block
            out.write(block)
    return PlainFile(copy, quotes)


def line_end(path: Path) -> bytes:
    """Finds what ends the lines of a file: a carriage return where its first MB has no line feed, else a line feed."""
    start = next(byte_blocks(path, 1 << 20), b"")
    return b"\r" if b"\r" in start.rstrip(b"\r") and b"\n" not in start else b"\n"


def read_lines(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Yields every line that is not blank, in batches with the schema `LINES`; errors as of `line_blocks`."""
    for number, path in enumerate(files):
        for row, text in line_blocks(path):
            at = np.arange(row, row + len(text), dtype=np.int64) + file_start(number)
            yield pa.record_batch([pa.array(at), text], schema=LINES).filter(pc.not_equal(text, ""))


def line_blocks(path: Path, *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, pa.StringArray]]:
    """Yields blocks of lines without white space at their ends, each with the number of its first line.

    Lines end in a line feed, with or without a carriage return before it, or all of them in a carriage return alone.

    Args:
      path: the file.
      block_bytes: bytes of text to read at a time.

    Raises:
      DataError: text that is not UTF-8, or a carriage return within a line.
    """
    end = line_end(path)
    row, rest = 1, b""
    blocks = byte_blocks(path, block_bytes)
    first = True
    while True:
        block = next(blocks, b"")
        data = rest + block
        if first:
            data, first = data.removeprefix(b"\xef\xbb\xbf"), False
        if not data:
            return
        cut = data.rfind(end) + 1 if block else len(data)
        rest = data[cut:]
        if not cut:
            continue
        ends = np.flatnonzero(np.frombuffer(data, np.uint8, cut) == end[0]) + 1
        if not len(ends) or ends[-1] != cut:
            ends = np.append(ends, cut)
        offsets = np.concatenate([[0], ends])
        text = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
        try:
            text.validate(full=True)
        except pa.ArrowInvalid as error:
            raise not_utf8(path, undecodable_line(path)) from error
        text = pc.ascii_rtrim_whitespace(text).cast(pa.string())
        if end == b"\n" and b"\r" in data:
            within = pc.index(pc.match_substring(text, "\r"), True).as_py()
            if within >= 0:
                raise mixed_line_ends(path, row + within)
        yield row, text
        row += len(ends)


def not_utf8(path: Path, row: int) -> DataError:
    """Makes the error about a line that is not UTF-8."""
    return DataError("expected UTF-8 text, found other bytes", fix="Save the file as UTF-8.", file=path, row=row)


def mixed_line_ends(path: Path, row: int) -> DataError:
    """Makes the error about a line that ends otherwise than those above it."""
    return DataError(
        "expected lines that all end alike (in a line feed, in a carriage return and a line feed, or in a carriage "
        "return), found another end than above, or a carriage return within a line",
        fix="Rewrite the file with one kind of line ends, as dos2unix or mac2unix do.",
        file=path,
        row=row,
    )


def undecodable_line(path: Path) -> int:
    """Finds the first line that is not UTF-8; 1 where all lines are."""
    end = line_end(path)
    row, rest = 1, b""
    for block in byte_blocks(path):
        *lines, rest = (rest + block).split(end)
        for line in lines:
            if not _decodes(line):
                return row
            row += 1
    return row if not _decodes(rest) else 1


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Opens a file as UTF-8 text with its line ends as they are; errors as of `open_bytes`."""
    with open_bytes(path) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        yield text
