"""`contextual`: examination by rank in each context, with relevance shared between contexts (Fang et al. 2019)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ultr.data import ClickLog, Counts
from ultr.data.counting import CellCounts, ExtraKey, count_cells, last_click_key, merge_extra, pair_key
from ultr.data.grouping import SortedGroups, sum_by_key
from ultr.errors import ConfigError
from ultr.propensity.arm_counts import ArmCounts, arm_counts_of_cells, first_ranks
from ultr.propensity.conditional import fit_conditional
from ultr.propensity.goodness_of_fit import GoodnessOfFit, goodness_of_fit_of_cells
from ultr.propensity.joint import fit_joint
from ultr.propensity.likelihood_table import Errors, LikelihoodFitter, check_errors, tabulate_fit
from ultr.propensity.propensities import Propensities
from ultr.text import ranks_text

COLUMN = "context."
FITTERS: Mapping[str, LikelihoodFitter] = {
    "maximum-likelihood": fit_joint,
    "conditional-likelihood": fit_conditional,
}
MAX_ARMS = 1000
MEMORY = 1 << 30  # bytes to sort and group in
LARGE_LOG_ERROR = 0.5  # a propensity with a larger error, relative to its value, says little


def contextual(
    source: ClickLog | Counts,
    by: str | Sequence[str],
    *,
    bins: int = 4,
    method: str = "conditional-likelihood",
    errors: Errors = "information",
    ranks: int | None = None,
    memory: int = MEMORY,
) -> dict[str, Propensities]:
    """Estimates examination by rank in each context, such as on phones and on desktops.

    Fits the position-based model P(click) = theta_(rank, context) gamma_document to all contexts at once: a document
    that was shown in several contexts, at whatever ranks, connects them. Each curve is relative to rank 1 of its own
    context, so that contexts may differ in how much is clicked overall, but not in which documents are relevant.
    Source: "Intervention harvesting for context-dependent examination-bias estimation" (SIGIR 2019), with tables in
    place of its network, and therefore with standard errors.

    Args:
      source: a log with context columns; it is streamed once, and once more for each column of numbers. Counts are
        refused: they have lost the columns.
      by: one or more of its context columns; with several, each combination is a context.
      bins: number of intervals, with about equal numbers of sessions, that a column of numbers is cut into.
      method: "maximum-likelihood" or "conditional-likelihood".
      errors: "information" or "query", as for `maximum_likelihood`.
      ranks: look at ranks 1 to this only; None: at all ranks.
      memory: bytes to sort and group in.

    Returns:
      Curves by readable names of the contexts, such as "device=phone" or "price=2.5 to 10, device=desk", in the order
      of the columns' values. What is unknown in the log is the context "unknown". Contexts without impressions are left
      out; those with too few clicks have a warning. `context` of a curve holds the value of each column.

    Raises:
      ConfigError: counts or no log at all, no such column, an option outside its range, or too many contexts.
      DataError: no clicks.
    """
    return contextual_with_fit(
        source, by, bins=bins, method=method, errors=errors, ranks=ranks, memory=memory, checked=False
    )[0]


def contextual_with_fit(
    source: ClickLog | Counts,
    by: str | Sequence[str],
    *,
    bins: int,
    method: str,
    errors: Errors,
    ranks: int | None,
    memory: int = MEMORY,
    checked: bool = True,
) -> tuple[dict[str, Propensities], dict[str, GoodnessOfFit]]:
    """Estimates examination in each context, and checks in each whether clicks fit the position-based model.

    Arguments and errors are those of `contextual`.

    Returns:
      The curves of `contextual`, not widened, and the checks by the same names; none unless `checked`.
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
    if not names or len(set(names)) < len(names) or bins < 1 or method not in FITTERS:
        raise ConfigError(
            f"expected one or more different columns, at least 1 bin and a method of {', '.join(FITTERS)}, found "
            f"{names}, {bins} and {method!r}"
        )
    columns = [_read_column(source, name, bins, memory) for name in names]
    sizes = [len(column.labels) for column in columns]

    def context_of(batch: pa.RecordBatch, offsets: np.ndarray, rank: np.ndarray, click: np.ndarray) -> np.ndarray:
        codes = [column.codes(batch[COLUMN + column.name].to_numpy()) for column in columns]
        return np.repeat(np.ravel_multi_index(codes, sizes), np.diff(offsets))

    contexts = ExtraKey(math.prod(sizes), context_of, tuple(COLUMN + name for name in names))
    lasts = last_click_key(source).size
    counted = count_cells(source, pair_key(contexts, last_click_key(source)) if checked else contexts, memory=memory)
    whole = counted
    if checked:
        assert counted.extra is not None
        counted = merge_extra(counted._replace(extra=counted.extra // lasts), keep=True)
    assert counted.extra is not None
    used, number = np.unique(counted.extra, return_inverse=True)
    width = source.ranks if ranks is None else min(ranks, source.ranks)
    if len(used) * width > MAX_ARMS:
        raise ConfigError(
            f"{len(used):,} contexts at {width:,} ranks are too many to tell apart (at most {MAX_ARMS:,} "
            "together): cut numbers into fewer bins, or merge rare values before preparing the log"
        )
    every_rank = arm_counts_of_cells(source, counted._replace(extra=number))
    counts = first_ranks(every_rank, ranks, ranks_per_context=source.ranks)
    fit = FITTERS[method](counts, errors=errors)
    out, fits = {}, {}
    for i, code in enumerate(used):
        at = np.unravel_index(code, sizes)
        context = {c.name: c.labels[j] for c, j in zip(columns, at, strict=True)}
        first = i * width
        every_arm = tabulate_fit(counts, fit, method, errors=errors, reference=first, ranks=width)
        name = ", ".join(f"{name}={value}" for name, value in context.items())
        out[name] = _curve_of_context(counts, every_arm, slice(first, first + width), context)
        if checked:
            fits[name] = goodness_of_fit_of_cells(source, _cells_of_context(whole, int(code), lasts), ranks=ranks)
    return out, fits


def _cells_of_context(cells: CellCounts, code: int, lasts: int) -> CellCounts:
    """Takes the cells of one context, by the last click alone, from those by context and last click."""
    assert cells.extra is not None
    here = cells.extra // lasts == code
    return CellCounts(
        cells.document[here],
        cells.rank[here],
        cells.extra[here] % lasts,
        cells.impressions[here],
        cells.clicks[here],
        float("nan"),  # the number of sessions of a context is not counted
    )


class _ContextColumn(NamedTuple):
    """A context column as categories.

    Attributes:
      name: of the column.
      labels: of the categories.
      upper: largest value of each interval of numbers but the last; None where the column holds categories.
    """

    name: str
    labels: list[str]
    upper: np.ndarray | None

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Returns the number of each value's category: [n]."""
        return values if self.upper is None else np.searchsorted(self.upper, values)


def _read_column(log: ClickLog, name: str, bins: int, memory: int) -> _ContextColumn:
    """Reads the categories of a column, or cuts its numbers into intervals."""
    description = log.metadata["context"][name]
    if description["kind"] == "category":
        return _ContextColumn(name, ["unknown", *map(str, description["values"])], None)
    least, most = np.full(bins, np.inf), np.full(bins, -np.inf)
    before = 0
    with SortedGroups(sum_by_key, memory=memory) as groups:
        for batch in log.columns([COLUMN + name]):
            groups.add(_sort_keys(batch[COLUMN + name].to_numpy()))
        for key, count in groups:
            value, count = _from_sort_keys(key), count.astype(np.int64)
            # Equal numbers stay together: all go to the bin of the middle one.
            middle = before + np.cumsum(count) - count / 2
            where = np.minimum(np.floor(middle * bins / log.sessions), bins - 1).astype(np.int64)
            np.minimum.at(least, where, value)
            np.maximum.at(most, where, value)
            before += int(count.sum())
    used = np.isfinite(least)
    least, most = least[used], most[used]
    labels = [f"{a:.6g}" if a == b else f"{a:.6g} to {b:.6g}" for a, b in zip(least, most, strict=True)]
    return _ContextColumn(name, labels, most[:-1].astype(np.float32))


def _sort_keys(x: np.ndarray) -> np.ndarray:
    """Converts finite float32 numbers to uint32 keys in the same order."""
    bits = (x.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _from_sort_keys(key: np.ndarray) -> np.ndarray:
    """Converts `_sort_keys` back to numbers."""
    key = key.astype(np.uint32)
    return np.where(key >> 31, key & np.uint32((1 << 31) - 1), ~key).view(np.float32).astype(np.float64)


def _curve_of_context(counts: ArmCounts, table: Propensities, arms: slice, context: dict[str, str]) -> Propensities:
    """Cuts the arms of one context out of the table of all arms."""
    first, last = arms.start, arms.stop
    value, log_error = table.value[arms], table.log_standard_error[arms]
    inside = (counts.arm >= first) & (counts.arm < last)
    shown, clicks = counts.impressions[inside].sum(), counts.clicks[inside].sum()
    reliable = np.isfinite(log_error) & (log_error <= LARGE_LOG_ERROR)
    has_impressions = counts.sum_by_arm(counts.impressions)[arms] > 0
    warnings = list(table.warnings)
    missing = np.flatnonzero(~reliable & has_impressions)
    if len(missing):
        what = ranks_text(missing + 1) if reliable[1:].any() else "a curve"
        warnings.insert(
            0, f"too few clicks to tell {what}: {clicks:,.0f} clicks in {shown:,.0f} impressions of this context"
        )
    return dataclasses.replace(
        table,
        rank=np.arange(1, last - first + 1),
        value=value,
        standard_error=table.standard_error[arms],
        interval=table.interval[arms],
        impressions=table.impressions[arms],
        shown=None if table.shown is None else table.shown[arms],
        unsupported={k - first: why for k, why in table.unsupported.items() if first < k <= last},
        warnings=tuple(warnings),
        covariance=None if table.covariance is None else table.covariance[arms, arms],
        context=context,
    )
