"""Tells the views of one query in one session apart: a page that is loaded again is a list of its own.

Only rows of sessions and queries with a repeated rank come here. A view is a run of rows in which each rank comes once:
runs follow each other in time where the times differ, otherwise in the order of the rows, where ranks that start again
begin a new one. Where neither gives runs of whole views, the rows stay together and are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa

from ultr.hashing import splitmix64
from ultr.ingest.packing import FlatColumns
from ultr.ingest.view_rules import Evidence, Rules, ViewCounts
from ultr.ingest.view_runs import Ordered, order_runs, time_runs

SCHEMA = pa.schema([("at", pa.int64()), ("list", pa.int64()), ("rank", pa.int32()), ("keep", pa.bool_())])


@dataclass
class _Group:
    """Holds rows of whole groups, sorted by group and position.

    Attributes:
      columns: group (from 0), at, rank, document, click, and where there are any time and view.
      start: [G + 1] where each group begins.
    """

    columns: FlatColumns
    start: np.ndarray
    evidence: Evidence = field(default_factory=Evidence)
    unordered: np.ndarray | None = None  # [G] whether nothing tells the order of the views of a column

    @property
    def size(self) -> int:
        return len(self.start) - 1


def gather_evidence(blocks: Iterable[FlatColumns], tick: float) -> Evidence:
    """Adds up the evidence of blocks of rows, as `whole_groups` yields them."""
    out = Evidence()
    for block in blocks:
        group = _group(block)
        _click_evidence(group)
        _assign(group, Rules(tick=tick), ViewCounts())
        for entry in fields(Evidence):
            setattr(out, entry.name, getattr(out, entry.name) + getattr(group.evidence, entry.name))
    return out


def assign_views(blocks: Iterable[FlatColumns], rules: Rules, counts: ViewCounts) -> Iterator[pa.RecordBatch]:
    """Yields the list, the rank and whether it is kept of each row, in batches with the schema `SCHEMA`.

    Args:
      blocks: of `whole_groups`.
      rules: the rules.
      counts: the counts are added to these.
    """
    for block in blocks:
        group = _group(block)
        x = group.columns
        view, keep, rank = _assign(group, rules, counts)
        key = x["group"].astype(np.int64) * (int(view.max(initial=0)) + 1) + view
        _, inverse = np.unique(key, return_inverse=True)
        # A list is numbered by the position of its first row.
        first = np.full(int(inverse.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, inverse[keep], x["at"][keep])
        counts.views += int((first < np.iinfo(np.int64).max).sum())
        yield pa.record_batch([pa.array(v) for v in (x["at"], first[inverse], rank.astype(np.int32), keep)], SCHEMA)


def whole_groups(batches: Iterable[pa.RecordBatch], *, rows: int = 1 << 20) -> Iterator[FlatColumns]:
    """Joins record batches sorted by `group` to blocks of whole groups of about so many rows."""
    held: list[FlatColumns] = []
    size, enough = 0, rows
    for batch in batches:
        held.append({name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names})
        size += len(batch)
        if size < enough:
            continue
        columns = {name: np.concatenate([h[name] for h in held]) for name in held[0]}
        cut = int(np.searchsorted(columns["group"], columns["group"][-1]))
        if cut:
            yield {name: x[:cut] for name, x in columns.items()}
            columns = {name: x[cut:].copy() for name, x in columns.items()}
        held, size = [columns], size - cut
        enough = max(rows, 2 * size)
    if size:
        yield {name: np.concatenate([h[name] for h in held]) for name in held[0]}


def _group(block: FlatColumns) -> _Group:
    number = block["group"]
    new = np.append(True, number[1:] != number[:-1])
    columns = dict(block) | {"group": np.cumsum(new) - 1, "rank": block["rank"].astype(np.int64)}
    return _Group(columns, np.append(np.flatnonzero(new), len(number)))


def _key(*columns: np.ndarray) -> np.ndarray:
    """Hashes rows of columns [n] to uint64."""
    out = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        bits = column.astype(np.float64).view(np.uint64) if column.dtype.kind == "f" else column.astype(np.uint64)
        out = splitmix64(out ^ bits)
    return out


def _seen_before(key: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Tells for each row whether a row of the same key stands at a lower place, such as in an earlier view."""
    order = np.lexsort((place, key))
    k, p = key[order], place[order]
    new = np.append(True, k[1:] != k[:-1])
    lowest = p[np.maximum.accumulate(np.where(new, np.arange(len(k)), 0))]
    out = np.empty(len(key), bool)
    out[order] = p > lowest
    return out


def _places(group: _Group) -> np.ndarray:
    x = group.columns
    return _key(x["group"], x["document"], x["rank"])


def _exact(group: _Group) -> np.ndarray:
    x = group.columns
    more = [x[name] for name in ("time", "view", "rest") if name in x]
    return _key(_places(group), x["click"], *more)


def _clicks_on_rows(group: _Group) -> np.ndarray:
    """Finds the clicked rows that repeat an unclicked one of the same place."""
    places, click = _places(group), group.columns["click"] == 1
    return np.asarray(click & np.isin(places, places[~click]))


def _click_evidence(group: _Group) -> None:
    x, found = group.columns, group.evidence
    apart = _clicks_on_rows(group)
    rest = np.flatnonzero(~apart)
    key = np.sort(_key(x["group"][rest], x["rank"][rest]))
    found.groups += group.size
    found.click_groups += group.size
    if (key[1:] == key[:-1]).any():
        ordered = Ordered.of(x["group"][rest], x["rank"][rest], group.size)
        found.click_groups -= int((ordered.most > 1).sum())
    found.partners += int(apart.sum())
    found.clicks += int((x["click"] == 1).sum())


def _assign(group: _Group, rules: Rules, counts: ViewCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers the views of each group [n]; also returns which rows to keep, and their ranks."""
    x = group.columns
    view, keep = np.zeros(len(x["at"]), np.int64), np.ones(len(x["at"]), bool)
    todo = np.ones(len(view), bool)
    clicks = _clicks_on_rows(group) if rules.click_rows else None
    if clicks is not None:
        todo &= ~clicks
    by = np.zeros(group.size, np.int8)
    if "view" in x:
        _by_column(group, view, by)
    else:
        _by_runs(group, rules, todo, view, keep, by)
    if clicks is not None:
        _follow(group, clicks, view)
    counts.by_time += int((by == 1).sum())
    counts.by_order += int((by == 2).sum())
    counts.by_column += int((by == 3).sum())
    counts.copies += int((~keep).sum())
    _count_mixed(group, by, keep if clicks is None else keep & ~clicks, counts)
    return view, keep, _pages(group, rules, view, keep, by, counts)


def _by_column(group: _Group, view: np.ndarray, by: np.ndarray) -> None:
    """Numbers the views that a column names, in the order in which they begin; notes where that is not known."""
    x = group.columns
    key = _key(x["group"], x["view"])
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    begin = x.get("time", x["at"]).astype(np.float64)
    start = np.full(len(first), np.inf)
    np.minimum.at(start, inverse, begin)
    order = np.lexsort((x["at"][first], start))
    number = np.empty(len(first), np.int64)
    number[order] = np.arange(len(first))
    view[:] = number[inverse]
    by[:] = 3
    # Views that begin at one time, or have none, follow each other in the file, unless their rows interleave.
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, inverse, np.arange(len(view)))
    owner = x["group"][first]
    at_once = start if "time" in x else np.zeros(len(first))
    order = np.lexsort((first, at_once, owner))
    new = np.append(True, (owner[order][1:] != owner[order][:-1]) | (at_once[order][1:] != at_once[order][:-1]))
    base = np.cumsum(new) * len(view)
    reached = np.maximum.accumulate(base + last[order])
    between = np.append(False, (base + first[order])[1:] < reached[:-1]) & ~new
    group.unordered = np.zeros(group.size, bool)
    group.unordered[owner[order][between]] = True


def _by_runs(group: _Group, rules: Rules, todo: np.ndarray, view: np.ndarray, keep: np.ndarray, by: np.ndarray) -> None:
    x, evidence = group.columns, group.evidence
    timed = np.zeros(group.size, bool)
    if "time" in x:
        low = np.minimum.reduceat(x["time"], group.start[:-1])
        timed = np.maximum.reduceat(x["time"], group.start[:-1]) > low
    exact = _exact(group)
    places = _places(group)
    for copies_apart in (False, True):
        rows = np.flatnonzero(todo & (by[x["group"]] == 0))
        if not len(rows):
            break
        stray = np.zeros(len(rows), bool)
        if copies_apart:
            # A copy has everything in common with an earlier row of its group. Where times differ that is proof; where
            # they do not, the same row of two views looks so too, unless it follows at once or begins no view.
            again = _seen_before(exact[rows], rows)
            sure = timed[x["group"][rows]]
            stray = again & (sure | _strays(x, rows, exact, again, first=not rules.equal_restarts))
        left = rows[~stray]
        if timed.any():
            for tick in (rules.tick, 0.0):
                inside = left[timed[x["group"][left]] & (by[x["group"][left]] == 0)]
                if len(inside):
                    run, good = time_runs(x, inside, group.size, tick)
                    _accept(group, inside, run, good & timed & (by == 0), view, by, method=1)
        inside = left[by[x["group"][left]] == 0]
        if len(inside):
            run, good, restarts, equal = order_runs(x, inside, group.size, equal=rules.equal_restarts)
            # Rows of one view that are left once copies are set aside need no order.
            good &= rules.by_order | (Ordered.of(x["group"][inside], x["rank"][inside], group.size).most < 2)
            _accept(group, inside, run, good & (by == 0), view, by, method=2)
            if copies_apart:
                touched = np.zeros(group.size, bool)
                touched[x["group"][rows[stray & _above_first(x, rows)]]] = True
                evidence.stray_copies += int((touched & (by == 2) & good).sum())
            else:
                evidence.ordered += int((by == 2).sum())
                evidence.restarts += restarts
                evidence.equal_inside += equal
        keep[rows[stray & (by[x["group"][rows]] > 0)]] = False
    rows = np.flatnonzero(todo & (by[x["group"]] == 0))
    if len(rows):  # groups of one list and copies of its rows
        again = _seen_before(exact[rows], rows)
        single = (Ordered.of(x["group"][rows[~again]], x["rank"][rows[~again]], group.size).most == 1) & (by == 0)
        copied = rows[again & single[x["group"][rows]]]
        keep[copied] = False
        by[single] = 4
        evidence.stray_copies += len(np.unique(x["group"][copied[_above_first(x, copied)]])) if len(copied) else 0
    evidence.unclear += int((by == 0).sum())
    _copies_of_views(group, rules, todo, view, keep, by, exact, places)


def _above_first(x: FlatColumns, rows: np.ndarray) -> np.ndarray:
    """Tells which rows have a rank above the first of the rows of their group."""
    group, rank = x["group"][rows], x["rank"][rows]
    least = np.full(int(group.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, group, rank)
    return np.asarray(rank > least[group])


def _strays(x: FlatColumns, rows: np.ndarray, exact: np.ndarray, again: np.ndarray, *, first: bool) -> np.ndarray:
    """Finds copies that follow their original at once, or that stand where no view begins.

    Args:
      x: the columns.
      rows: [n] rows by group and position.
      exact: hash of each row of `x`.
      again: [n] whether the row is a copy of an earlier one of its group.
      first: whether the first rank of a group that follows itself is such a copy, rather than another view.
    """
    above = _above_first(x, rows)
    group = x["group"][rows]
    out = np.append(False, (exact[rows][1:] == exact[rows][:-1]) & (group[1:] == group[:-1])) & (above | first)
    left = np.flatnonzero(~out)
    group, rank = group[left], x["rank"][rows[left]]
    start = np.flatnonzero(np.append(True, (group[1:] != group[:-1]) | (rank[1:] <= rank[:-1])))
    copied = above[left[start]] & np.logical_and.reduceat(again[left], start)
    out[left] = np.repeat(copied, np.diff(np.append(start, len(left))))
    return np.asarray(out)


def _accept(
    group: _Group, rows: np.ndarray, run: np.ndarray, good: np.ndarray, view: np.ndarray, by: np.ndarray, *, method: int
) -> None:
    chosen = good[group.columns["group"][rows]]
    view[rows[chosen]] = run[chosen]
    touched = np.zeros(group.size, bool)
    touched[group.columns["group"][rows[chosen]]] = True
    by[touched] = method


def _copies_of_views(
    group: _Group,
    rules: Rules,
    todo: np.ndarray,
    view: np.ndarray,
    keep: np.ndarray,
    by: np.ndarray,
    exact: np.ndarray,
    places: np.ndarray,
) -> None:
    """Drops views that are copies, and gives rows that were shown again lower down back to the view before."""
    x, evidence = group.columns, group.evidence
    rows = np.flatnonzero(todo & keep & (by[x["group"]] > 0))
    if not len(rows):
        return
    rows = rows[np.lexsort((view[rows], x["group"][rows]))]
    g, v = x["group"][rows], view[rows]
    new = np.append(True, (g[1:] != g[:-1]) | (v[1:] != v[:-1]))
    start = np.flatnonzero(new)
    of = np.cumsum(new) - 1
    size = np.diff(np.append(start, len(rows)))
    first = np.append(True, g[start][1:] != g[start][:-1])
    before = np.where(first, 0, np.append(0, size[:-1]))
    clicks = np.add.reduceat((x["click"][rows] == 1).astype(np.int64), start)
    either = clicks + np.where(first, 0, np.append(0, clicks[:-1])) > 0
    copied = np.logical_and.reduceat(_seen_before(exact[rows], v), start) & ~first
    same = np.logical_and.reduceat(_seen_before(places[rows], v), start) & ~first
    at_once = same
    if "time" in x:
        at_once = np.logical_and.reduceat(_seen_before(_key(places, x["time"])[rows], v), start) & ~first
    short = (2 * size <= before) & ~first
    ordered = by[g[start]] == 2
    if not rules.click_rows:
        repeats = ordered & at_once & either & (size == before)
        evidence.repeats += int(repeats.sum())
        evidence.same_repeats += int((repeats & copied).sum())
        evidence.short_copies += int((ordered & short & copied).sum())
        evidence.short_views += int((ordered & short & ~copied).sum())
    drop = ordered & copied & np.where(short, rules.drop_short_copies, rules.drop_copies)
    keep[rows[drop[of]]] = False
    # Rows at a later time that repeat places of the view before, but not its first, were scrolled to again.
    least = np.minimum.reduceat(x["rank"][rows], group_starts := np.flatnonzero(np.append(True, g[1:] != g[:-1])))
    lowest = np.minimum.reduceat(x["rank"][rows], start)
    begins = lowest == least[np.searchsorted(group_starts, start, side="right") - 1]
    again = (by[g[start]] == 1) & same & short & ~begins
    if again.any():
        number = v[start]
        taken = number.copy()
        for i in np.flatnonzero(again):  # in order, so that several in a row go to the same view
            taken[i] = taken[i - 1]
        view[rows] = taken[of]
    # Groups of one view that is left were told apart from copies, not from other views.
    kept = np.zeros(group.size, np.int64)
    np.add.at(kept, g[start], (~drop & ~again).astype(np.int64))
    by[(kept == 1) & (by > 0)] = 4


def _follow(group: _Group, clicks: np.ndarray, view: np.ndarray) -> None:
    """Gives each clicked row the view of the last row of its place before it, or of the first one."""
    x = group.columns
    time = x.get("time", x["at"])
    order = np.lexsort((x["at"], time, _places(group)))
    shown = ~clicks[order]
    key = _places(group)[order]
    new = np.append(True, key[1:] != key[:-1])
    start = np.maximum.accumulate(np.where(new, np.arange(len(key)), 0))
    last = np.maximum.accumulate(np.where(shown, np.arange(len(key)), -1))
    ahead = np.flatnonzero(shown)
    following = ahead[np.minimum(np.searchsorted(ahead, np.arange(len(key))), len(ahead) - 1)]
    source = np.where(last >= start, last, following)
    numbers = view[order]
    view[order] = np.where(shown, numbers, numbers[source])


def _count_mixed(group: _Group, by: np.ndarray, keep: np.ndarray, counts: ViewCounts) -> None:
    """Counts repeated ranks of groups that hold several whole views, as ranks from the first on are repeated."""
    x = group.columns
    rows = np.flatnonzero(keep & (by[x["group"]] == 0))
    if not len(rows):
        return
    g, rank = x["group"][rows], x["rank"][rows]
    order = np.lexsort((rows, rank, g))
    g, rank = g[order], rank[order]
    new = np.append(True, (g[1:] != g[:-1]) | (rank[1:] != rank[:-1]))
    start = np.flatnonzero(new)
    times = np.diff(np.append(start, len(g)))
    owner = g[start]
    begin = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
    distinct = np.diff(np.append(begin, len(owner)))
    several = np.add.reduceat((times > 1).astype(np.int64), begin)
    place = np.arange(len(owner)) - np.repeat(begin, distinct)
    inside = np.repeat(several, distinct)
    prefix = np.logical_and.reduceat((times > 1) == (place < inside), begin)
    mixed = prefix & (several > 0) & ((several == distinct) | ((several > 2) & (2 * several >= distinct)))
    chosen = np.zeros(group.size, bool)
    chosen[owner[begin][mixed]] = True
    extra = np.zeros(group.size, np.int64)
    extra[owner[begin]] = np.add.reduceat(times - 1, begin)
    counts.repeated += int(extra.sum())
    counts.mixed += int(extra[chosen].sum())
    counts.mixed_at_one_rank += int(extra[owner[begin][mixed & (distinct == 1)]].sum())
    if chosen.any() and counts.first_mixed < 0:
        # The first row whose rank an earlier row of its group has.
        inside_rows = rows[chosen[x["group"][rows]]]
        repeated = _seen_before(_key(x["group"][inside_rows], x["rank"][inside_rows]), inside_rows)
        counts.first_mixed = int(x["at"][inside_rows[repeated]].min())


def _pages(
    group: _Group, rules: Rules, view: np.ndarray, keep: np.ndarray, by: np.ndarray, counts: ViewCounts
) -> np.ndarray:
    """Counts the views of other documents than those above them; joins them to these where the rules say so."""
    x = group.columns
    rank = x["rank"].copy()
    told = (by[x["group"]] > 0) & (by[x["group"]] < 4)
    rows = np.flatnonzero(keep & told)
    if not len(rows):
        return rank
    rows = rows[np.lexsort((x["at"][rows], view[rows], x["group"][rows]))]
    g, v = x["group"][rows], view[rows]
    start = np.flatnonzero(np.append(True, (g[1:] != g[:-1]) | (v[1:] != v[:-1])))
    end = np.append(start[1:], len(rows))
    document = _key(g, x["document"][rows])
    seen = np.add.reduceat(_seen_before(document, v).astype(np.int64), start)
    first = np.append(True, g[start][1:] != g[start][:-1])
    other = ~first & (2 * seen < end - start)
    counts.pages += int(other.sum())
    if other.any():
        at = int(x["at"][rows[start[other]]].min())
        counts.first_page = at if counts.first_page < 0 else min(at, counts.first_page)
    if not rules.joined:
        return rank
    with_pages = np.unique(g[start][other])
    repeats = Ordered.of(g, rank[rows], group.size).most > 1  # else the ranks of all pages are those of one list
    if group.unordered is not None and len(unclear := with_pages[(group.unordered & repeats)[with_pages]]):
        of_unclear = rows[np.isin(g, unclear)]
        counts.unordered += len(of_unclear)
        at = int(x["at"][of_unclear].min())
        counts.first_unordered = at if counts.first_unordered < 0 else min(at, counts.first_unordered)
    above: set[int] = set()
    top, number = 0, 0
    for i in np.flatnonzero(np.isin(g[start], with_pages)):
        inside = rows[start[i] : end[i]]
        shown = document[start[i] : end[i]].tolist()
        if not first[i] and 2 * sum(d in above for d in shown) < len(shown):
            if repeats[g[start[i]]] and rank[inside].min() <= top:  # ranks that go on are those of the list already
                rank[inside] += top
            view[inside] = number
        else:
            above, top, number = set(), 0, int(v[start[i]])
        above.update(shown)
        top = max(top, int(rank[inside].max()))
    return rank
