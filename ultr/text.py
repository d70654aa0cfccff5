"""Tables and phrases for people: plain and Markdown tables, ranks, numbers of things, hints at misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import groupby


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lays rows out in aligned columns, with a line below the first row, which is the head.

    Args:
      rows: cells of each row, as many in every row.
      left: how many columns are aligned to the left; the others are aligned to the right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(cells: Iterable[str]) -> str:
        aligned = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(rows[0]), line("-" * width for width in widths), *map(line, rows[1:])])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Writes rows as a Markdown table: the first row is the head, the first column is aligned to the left."""
    head, *body = rows
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def ranks_text(ranks: Iterable[int]) -> str:
    """Names ranks in increasing order, such as "rank 3", "ranks 3-7" or "ranks 3, 5-7, 9"; "no rank" for none."""
    given = [int(rank) for rank in ranks]
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(given), lambda pair: pair[1] - pair[0])]
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{'rank' if len(given) == 1 else 'ranks'} {', '.join(parts)}" if parts else "no rank"


def counted(number: float, one: str, several: str = "") -> str:
    """Names a number of things, such as "1 row" or "2,000 rows"; `several` where it is not `one` with an s."""
    return f"{number:,.0f} {one if number == 1 else several or f'{one}s'}"


def did_you_mean(name: str, known: Iterable[str], *, suffix: str = "") -> str:
    """Suggests the known name closest to a misspelt one, as " (did you mean 'x'?)"; empty where none is close.

    Args:
      name: the misspelt name.
      known: the names.
      suffix: what follows on the suggested name, such as the cutoff of a metric.
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean '{close[0]}{suffix}'?)" if close else ""


def names_text(names: Sequence[str]) -> str:
    """Lists names for an error, at most twenty of them, and of each the first 40 signs."""
    shown = [name if len(name) <= 40 else f"{name[:40]}..." for name in names[:20]]
    more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
    return f"{shown}{more}"
