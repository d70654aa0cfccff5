"""Damages files and values at random: bytes, lines, fields, columns, JSON trees, Parquet tables, Python objects."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Rng = np.random.Generator

NUMBERS = [
    "-1", "0", "-0", "1e308", "-1e308", "1e309", "nan", "inf", "-inf", "2147483648", "-2147483649",
    "99999999999999999999", "9223372036854775807", "1e-320",
    "0.5", "0x10", "1_000", "\u0661", "", " ", "1,5", "1e39", "999999999", "-3", "65537",
]  # fmt: skip
WORDS = [
    *NUMBERS, '"', "'", '""', "\\", "\0", "\ufeff", "null", "None", "true", "[", "]", "[" * 2000, "{", "}", "[]", "{}",
    "é", "\u2028", "💥" * 5, "x" * 3000, "a\nb", "a\rb", "a,b", "a\tb", "a;b", ":", "#", "qid:", "docid = ", "../..",
    "%s", "{0}", "\x1f", "\x85", " padded ", "session", "query", "DROP TABLE x", "=", "1:2:3", ",,,", "\ud7ff",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, [], {}, "", "x", "-1", -1, 0, 1, 0.5, -0.5, 2**31, 2**63, 10**400, 1e308, float("nan"),
    float("inf"), [[]], [None], ["x"], {"a": 1}, {"name": "x", "rows": 1}, "\0", "x" * 3000, [1, [2, [3]]], "../../x",
    "é💥",
]  # fmt: skip


def nested(depth: int) -> Any:
    """Makes a list in a list in a list, and so on."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


# Bytes


def damage_bytes(data: bytes, rng: Rng) -> bytes:
    """Truncates, flips, inserts, deletes, duplicates or swaps bytes."""
    size = len(data)
    if not size:
        return bytes(rng.integers(0, 256, 20, dtype=np.uint8))
    at, length = int(rng.integers(size)), int(rng.integers(1, 1 + min(size, 40)))
    kind = rng.integers(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[at:]
    if kind == 2:
        flipped = bytearray(data)
        for place in rng.integers(0, size, int(rng.integers(1, 4))):
            flipped[place] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if kind == 3:
        return data[:at] + bytes(rng.integers(0, 256, length, dtype=np.uint8)) + data[at:]
    if kind == 4:
        return data[:at] + data[at + length :]
    if kind == 5:
        return data[: at + length] + data[at:]
    if kind == 6:
        return data[:at] + bytes(length) + data[at + length :]
    other = int(rng.integers(size))
    low, high = sorted((at, other))
    return data[:low] + data[high : high + length] + data[low + length : high] + data[low : low + length] + data[
        high + length :
    ]  # fmt: skip


# Text


def _pick(rng: Rng, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _delimiter(lines: list[str], rng: Rng) -> str:
    found = [sign for sign in "\t,;| :" if any(sign in line for line in lines[:3])]
    return str(_pick(rng, found)) if found else ","


def _lines(text: str, rng: Rng) -> str:
    lines = text.split("\n")
    a, b = (int(x) for x in rng.integers(0, len(lines), 2))
    kind = rng.integers(7)
    if kind == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 1:
        lines.insert(a, lines[b])
    elif kind == 2:
        del lines[a]
    elif kind == 3:
        lines.insert(a, "")
    elif kind == 4:
        lines[a : a + 2] = ["".join(lines[a : a + 2])]
    elif kind == 5:
        lines[a] = str(_pick(rng, WORDS))
    else:
        lines[a] = lines[a][: len(lines[a]) // 2]
    return "\n".join(lines)


def _fields(text: str, rng: Rng) -> str:
    lines = text.split("\n")
    at = int(rng.integers(len(lines)))
    sign = _delimiter(lines, rng)
    parts = lines[at].split(sign)
    a, b = (int(x) for x in rng.integers(0, len(parts), 2))
    kind = rng.integers(6)
    if kind == 0:
        parts[a] = str(_pick(rng, WORDS))
    elif kind == 1:
        parts[a] = str(_pick(rng, NUMBERS))
    elif kind == 2:
        del parts[a]
    elif kind == 3:
        parts.insert(a, parts[b])
    elif kind == 4:
        parts[a], parts[b] = parts[b], parts[a]
    else:
        parts[a] = f'"{parts[a]}' if rng.integers(2) else f' {parts[a]}"'
    lines[at] = sign.join(parts)
    return "\n".join(lines)


def _columns(text: str, rng: Rng) -> str:
    lines = text.split("\n")
    sign = _delimiter(lines, rng)
    width = max(line.count(sign) for line in lines) + 1
    a, b, kind, word = int(rng.integers(width)), int(rng.integers(width)), rng.integers(5), str(_pick(rng, WORDS))
    out = []
    for line in lines:
        parts = line.split(sign)
        if max(a, b) < len(parts) > 1:
            if kind == 0:
                del parts[a]
            elif kind == 1:
                parts.insert(a, parts[b])
            elif kind == 2:
                parts[a], parts[b] = parts[b], parts[a]
            elif kind == 3:
                parts[a] = word
            else:
                parts[a] = f'"{parts[a]}"'
        out.append(sign.join(parts))
    return "\n".join(out)


def _number(text: str, rng: Rng) -> str:
    found = list(re.finditer(r"-?\d+(\.\d+)?", text))
    if not found:
        return text
    at = found[int(rng.integers(len(found)))]
    return text[: at.start()] + str(_pick(rng, NUMBERS)) + text[at.end() :]


def _word(text: str, rng: Rng) -> str:
    at = int(rng.integers(len(text) + 1))
    return text[:at] + str(_pick(rng, WORDS)) + text[at:]


def _ends(text: str, rng: Rng) -> str:
    end = str(_pick(rng, ["\r", "\r\n", "\n\n", "\n\r"]))
    if rng.integers(2):
        return text.replace("\n", end)
    places = [i for i, sign in enumerate(text) if sign == "\n"]
    if not places:
        return text + end
    at = places[int(rng.integers(len(places)))]
    return text[:at] + end + text[at + 1 :]


TEXT: list[Callable[[str, Rng], str]] = [_lines, _fields, _fields, _columns, _number, _word, _ends]


def _encoded(text: str, rng: Rng) -> bytes:
    kind = rng.integers(6)
    if kind == 0:
        return text.encode("utf-16", "surrogatepass")
    if kind == 1:
        return text.encode("utf-16-le", "surrogatepass")
    if kind == 2:
        return text.encode("latin-1", "replace") + b"\xe9\xff\n"
    if kind == 3:
        return codecs.BOM_UTF8 + text.encode("utf-8", "surrogatepass")
    pack: Callable[[bytes], bytes] = gzip.compress if kind == 4 else bz2.compress
    packed = pack(text.encode("utf-8", "surrogatepass"))
    return packed if rng.integers(2) else damage_bytes(packed, rng)


def damage_text(data: bytes, rng: Rng) -> bytes:
    """Damages a text file one to three times: its bytes, lines, fields, columns, numbers, line ends or encoding."""
    for _ in range(int(_pick(rng, [1, 1, 2, 3]))):
        if rng.integers(5) == 0:
            data = damage_bytes(data, rng)
            continue
        text = data.decode("utf-8", "replace")
        if rng.integers(15) == 0:
            data = _encoded(text, rng)
            continue
        change: Callable[[str, Rng], str] = _pick(rng, list(TEXT))
        data = change(text, rng).encode("utf-8", "surrogatepass")
    return data


# JSON


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [path] if path else []
    if len(path) > 50:
        return out
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        out += _places(value, (*path, key))
    return out


def damage_tree(tree: Any, rng: Rng) -> Any:
    """Replaces, deletes, renames or moves a value somewhere in lists and dictionaries."""
    places = _places(tree)
    if not places:
        return _pick(rng, VALUES)
    *above, last = places[int(rng.integers(len(places)))]
    node = tree
    for key in above:
        node = node[key]
    kind = rng.integers(7)
    if kind == 0:
        del node[last]
    elif kind == 1:
        node[last] = nested(int(rng.integers(1, 3000)))
    elif kind == 2 and isinstance(node, dict):
        node[str(_pick(rng, ["x", "", "class", "name", "\0", "é"]))] = node.pop(last)
    elif kind == 3:
        donor = tree
        for key in places[int(rng.integers(len(places)))]:
            donor = donor[key]
        node[last] = json.loads(_dumps(donor))
    elif kind == 4 and isinstance(node[last], int | float) and not isinstance(node[last], bool):
        node[last] = _pick(rng, [-node[last], node[last] + 1, node[last] * 10**6, float(node[last]), str(node[last])])
    else:
        node[last] = _pick(rng, VALUES)
    return tree


def _dumps(tree: Any) -> bytes:
    try:
        return json.dumps(tree, indent=1).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 900 + b"]" * 900


def damage_json(data: bytes, rng: Rng) -> bytes:
    """Damages a JSON file as text or as a tree."""
    kind = rng.integers(8)
    if kind == 0:
        return damage_text(data, rng)
    if kind == 1 and rng.integers(4) == 0:
        text = b"[" * 5000
        return text if rng.integers(2) else text + b"]" * 5000
    tree = json.loads(data)
    for _ in range(int(rng.integers(1, 3))):
        tree = damage_tree(tree, rng)
    return _dumps(tree)


def damage_json_lines(data: bytes, rng: Rng) -> bytes:
    """Damages a file with a JSON object per line."""
    if rng.integers(2):
        return damage_text(data, rng)
    lines = data.splitlines()
    at = int(rng.integers(len(lines)))
    lines[at] = _dumps(damage_tree(json.loads(lines[at]), rng)).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


# Parquet and Arrow

TYPES = [
    pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.float16(), pa.float64(), pa.string(), pa.large_string(),
    pa.bool_(), pa.binary(), pa.decimal128(38, 2), pa.timestamp("us"), pa.timestamp("ns", "Asia/Tokyo"), pa.date32(),
    pa.time64("us"), pa.duration("s"), pa.list_(pa.string()), pa.list_(pa.int64()), pa.list_(pa.list_(pa.float32())),
    pa.large_list(pa.float64()), pa.struct([("a", pa.int64())]), pa.dictionary(pa.int32(), pa.string()), pa.null(),
    pa.map_(pa.string(), pa.int64()), pa.list_(pa.float32(), 3), pa.binary(4),
]  # fmt: skip


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Casts a column; where that cannot be, makes values of the type that stand for nothing."""
    try:
        return column.cast(kind, safe=False).combine_chunks()
    except (pa.ArrowException, ValueError, TypeError):
        pass
    seeds: list[Any] = [1, "x", b"abcd", True, [1], ["x"], [[0.5]], [0.5] * 3, {"a": 1}, [("k", 1)], None]
    for value in seeds:
        try:
            return pa.array([value] * len(column), kind)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            continue
    return pa.nulls(len(column), kind)


def damage_table(table: pa.Table, rng: Rng) -> pa.Table:
    """Damages a table: types, names, nulls, extremes, rows and columns."""
    at = int(rng.integers(table.num_columns))
    name, column = table.schema.names[at], table.column(at)
    other = int(rng.integers(table.num_columns))
    kind = rng.integers(12)
    if kind in (0, 1, 2):
        return table.set_column(at, name, _as_type(column, _pick(rng, TYPES)))
    if kind == 3:
        return table.set_column(at, name, pa.array(
            [None if rng.integers(4) == 0 else x for x in column.to_pylist()], column.type))  # fmt: skip
    if kind == 4:
        return table.rename_columns(
            [str(_pick(rng, WORDS)) if i == at else n for i, n in enumerate(table.schema.names)]
        )
    if kind == 5:
        return table.remove_column(at)
    if kind == 6:
        return table.add_column(other, str(_pick(rng, [name, name.upper(), "x", ""])), column)
    if kind == 7:
        return table.rename_columns(
            [table.schema.names[other] if i == at else n for i, n in enumerate(table.schema.names)]
        )
    if kind == 8:
        return table.slice(0, int(rng.integers(3)))
    if kind == 9:
        return table.take(pa.array(rng.permutation(len(table))))
    if kind == 10:
        return table.take(pa.array(np.sort(rng.integers(0, len(table), 2 * len(table)))))
    return table.set_column(at, name, _extremes(column, rng))


def _extremes(column: pa.ChunkedArray, rng: Rng) -> pa.Array:
    values = column.to_pylist()
    at = int(rng.integers(max(len(values), 1)))
    if not values:
        return column.combine_chunks()

    def change(value: Any) -> Any:
        if isinstance(value, list):
            if rng.integers(3) == 0 or not value:
                return _pick(rng, [[], value + value, value[:-1], None])
            place = int(rng.integers(len(value)))
            return [change(x) if i == place else x for i, x in enumerate(value)]
        if isinstance(value, str):
            return _pick(rng, WORDS)
        if isinstance(value, float):
            return _pick(rng, [float("nan"), float("inf"), -1.0, 1e300, 1e-320, 0.5, None])
        return _pick(rng, [-1, 0, 2, 127, -128, None, 2**31, 2**62])

    try:
        values[at] = change(values[at])
        return pa.array(values, column.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return column.combine_chunks()


def damage_parquet(data: bytes, rng: Rng) -> bytes:
    """Damages a Parquet file: its bytes, or the table in it."""
    if rng.integers(3) == 0:
        return damage_bytes(data, rng)
    table = pq.read_table(pa.BufferReader(data))
    for _ in range(int(rng.integers(1, 3))):
        if table.num_columns and len(table):
            table = damage_table(table, rng)
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False} if rng.integers(2) else {}
    try:
        pq.write_table(table, sink, row_group_size=max(len(table) // 2, 1) if rng.integers(2) else None, **options)
    except (pa.ArrowException, ValueError):  # a type that Parquet does not have
        return damage_bytes(data, rng)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def damage_feather(data: bytes, rng: Rng) -> bytes:
    """Damages an Arrow file: its bytes, or the table in it."""
    if rng.integers(3) == 0:
        return damage_bytes(data, rng)
    table = damage_table(pa.ipc.open_file(pa.BufferReader(data)).read_all(), rng)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed
