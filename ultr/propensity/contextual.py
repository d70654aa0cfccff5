"""`contextual`: examination by rank in each context, with relevance shared between contexts (Fang et al. 2019)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from ultr.data import ClickLog
from ultr.data.counting import ExtraKey, count_cells
from ultr.data.grouping import SortedGroups, sum_by_key
from ultr.errors import ConfigError
from ultr.propensity.cells import Cells, first_ranks, known_cells
from ultr.propensity.conditional import fit_conditionally
from ultr.propensity.fitted import Errors, check_errors, tabulate
from ultr.propensity.joint import fit_jointly
from ultr.propensity.table import Propensities, ranks_text

COLUMN = "context."
FITS = {"maximum-likelihood": fit_jointly, "conditional-likelihood": fit_conditionally}
MOST_ARMS = 1000
POOR = 0.5  # a standard error from which on, relative to its value, a propensity says little


def contextual(
    source: ClickLog,
    by: str | Sequence[str],
    *,
    bins: int = 4,
    method: Literal["maximum-likelihood", "conditional-likelihood"] = "conditional-likelihood",
    errors: Errors = "information",
    ranks: int | None = None,
    memory: int = 1 << 30,
) -> dict[str, Propensities]:
    """Examination by rank in each context: on phones and on desks, say.

    The position-based model P(click) = theta_(rank, context) gamma_document, all contexts at once: a document that was
    shown in several of them, wherever, connects their ranks. Each curve is relative to rank 1 of its own context, so
    that contexts may differ in how much is clicked at all; what they may not differ in is which documents are relevant.
    Source: "Intervention harvesting for context-dependent examination-bias estimation" (SIGIR 2019), with tables in
    place of its network, and so with standard errors.

    Args:
      source: a log with context columns; it is streamed once, and once more for each column of numbers.
      by: one or more of its context columns; with several, each combination is a context.
      bins: into how many intervals with about equal numbers of sessions a column of numbers is cut.
      method: how the model is estimated.
      errors: as of that method.
      ranks: look at ranks 1 to this alone; None: at all.
      memory: bytes to sort and group in.

    Returns:
      Tables by readable names of the contexts, such as "device=phone" or "price=2.5 to 10, device=desk", in the order
      of the columns' values. What is "unknown" in the log is a context of its own. Contexts without impressions are
      left out; one with too little to tell says so in its `warnings`. `context` holds the value of each column.

    Raises:
      ConfigError: not a log, no such column, options that make no sense, or too many contexts.
      DataError: no clicks.
    """
    if not isinstance(source, ClickLog):
        raise ConfigError(f"expected a ClickLog, found {type(source).__name__}: counts have lost the context columns")
    check_errors(errors)
    names = [by] if isinstance(by, str) else list(by)
    known = source.metadata["context"]
    for name in names:
        if name not in known:
            has = f"found the context columns {', '.join(known)}" if known else "the log has no context columns"
            raise ConfigError(f"expected a context column '{name}': {has}. `ultr prepare --context` keeps one")
    if not names or len(set(names)) < len(names) or bins < 1 or method not in FITS:
        raise ConfigError(
            f"expected one or more different columns, at least 1 bin and a method of {', '.join(FITS)}, found {names}, "
            f"{bins} and {method!r}"
        )
    columns = [_column(source, name, bins, memory) for name in names]
    sizes = [len(column.labels) for column in columns]

    def part(batch: pa.RecordBatch, offsets: np.ndarray, rank: np.ndarray, click: np.ndarray) -> np.ndarray:
        codes = [column.codes(batch[COLUMN + column.name].to_numpy()) for column in columns]
        return np.repeat(np.ravel_multi_index(codes, sizes), np.diff(offsets))

    counted = count_cells(
        source, ExtraKey(math.prod(sizes), part, tuple(COLUMN + name for name in names)), memory=memory
    )
    assert counted.extra is not None
    used, number = np.unique(counted.extra, return_inverse=True)
    width = source.ranks if ranks is None else min(ranks, source.ranks)
    if len(used) * width > MOST_ARMS:
        raise ConfigError(
            f"{len(used):,} contexts at {width:,} ranks are too many to tell apart (at most {MOST_ARMS:,} "
            "together): cut numbers into fewer bins, or put rare values together before preparing the log"
        )
    cells = first_ranks(known_cells(source, counted._replace(extra=number)), ranks, of=source.ranks)
    fit = FITS[method](cells, errors=errors)
    out = {}
    for i, code in enumerate(used):
        at = np.unravel_index(code, sizes)
        context = {c.name: c.labels[j] for c, j in zip(columns, at, strict=True)}
        first = i * width
        whole = tabulate(cells, fit, method, errors=errors, reference=first, ranks=width)
        out[", ".join(f"{name}={value}" for name, value in context.items())] = _part(
            cells, whole, slice(first, first + width), context
        )
    return out


class _Column(NamedTuple):
    """A context column as categories.

    Attributes:
      name: of the column.
      labels: of the categories.
      upper: largest value of each category of numbers but the last; None where the column holds categories.
    """

    name: str
    labels: list[str]
    upper: np.ndarray | None

    def codes(self, values: np.ndarray) -> np.ndarray:
        """[n] category of each value."""
        return values if self.upper is None else np.searchsorted(self.upper, values)


def _column(log: ClickLog, name: str, bins: int, memory: int) -> _Column:
    about = log.metadata["context"][name]
    if about["kind"] == "category":
        return _Column(name, ["unknown", *map(str, about["values"])], None)
    least, most = np.full(bins, np.inf), np.full(bins, -np.inf)
    before = 0
    with SortedGroups(sum_by_key, memory=memory) as groups:
        for batch in log.columns([COLUMN + name]):
            groups.add(_ordered(batch[COLUMN + name].to_numpy()))
        for key, count in groups:
            value, count = _unordered(key), count.astype(np.int64)
            # The bin of the middle one of those that are equal: equal numbers stay together.
            middle = before + np.cumsum(count) - count / 2
            where = np.minimum(np.floor(middle * bins / log.sessions), bins - 1).astype(np.int64)
            np.minimum.at(least, where, value)
            np.maximum.at(most, where, value)
            before += int(count.sum())
    there = np.isfinite(least)
    least, most = least[there], most[there]
    labels = [f"{a:.6g}" if a == b else f"{a:.6g} to {b:.6g}" for a, b in zip(least, most, strict=True)]
    return _Column(name, labels, most[:-1].astype(np.float32))


def _ordered(x: np.ndarray) -> np.ndarray:
    """uint32 in the order of the finite float32."""
    bits = (x.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 is 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _unordered(key: np.ndarray) -> np.ndarray:
    key = key.astype(np.uint32)
    return np.where(key >> 31, key & np.uint32((1 << 31) - 1), ~key).view(np.float32).astype(np.float64)


def _part(cells: Cells, table: Propensities, arms: slice, context: dict[str, str]) -> Propensities:
    first, last = arms.start, arms.stop
    value, error = table.value[arms], table.log_standard_error[arms]
    inside = (cells.arm >= first) & (cells.arm < last)
    shown, clicks = cells.impressions[inside].sum(), cells.clicks[inside].sum()
    told = np.isfinite(error) & (error <= POOR)
    some = cells.per_arm(cells.impressions)[arms] > 0
    warnings = list(table.warnings)
    missing = np.flatnonzero(~told & some)
    if len(missing):
        what = ranks_text(missing + 1) if told[1:].any() else "a curve"
        warnings.insert(
            0, f"too little to tell {what}: {clicks:,.0f} clicks in {shown:,.0f} impressions of this context"
        )
    return dataclasses.replace(
        table,
        rank=np.arange(1, last - first + 1),
        value=value,
        standard_error=table.standard_error[arms],
        interval=table.interval[arms],
        impressions=table.impressions[arms],
        unsupported={k - first: why for k, why in table.unsupported.items() if first < k <= last},
        warnings=tuple(warnings),
        covariance=None if table.covariance is None else table.covariance[arms, arms],
        context=context,
    )
