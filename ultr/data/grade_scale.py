"""The scale of grades: the highest grade there could be, which the metric err refers to."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import numpy as np
import pyarrow as pa

from ultr.arguments import LARGEST_GRADE, check_grades
from ultr.errors import ConfigError, DataError


def grade_scale(
    grades: pa.ChunkedArray | np.ndarray | None,
    *,
    stated: float | None = None,
    least: float | None = None,
    file: str = "",
    document: Callable[[int], str] | None = None,
) -> float | None:
    """Returns the highest grade of the scale of some grades; None where there are none.

    Args:
      grades: [V], null or NaN where not judged.
      stated: the highest grade of the scale as someone said; None: the highest of the grades, at least 0.
      least: what the scale reaches in any case, such as that of the vocabulary that the data extends.
      file: what errors call the grades.
      document: names the document of a row for errors.

    Raises:
      ConfigError: `stated` is no number above 0 or above the largest grade there may be, is below `least`, or there are
        no grades.
      DataError: a grade above the scale, or above the largest there may be; names the 1-based row of the document.
    """
    number = isinstance(stated, Real) and not isinstance(stated, bool)
    if stated is not None and not (number and 0 < stated <= LARGEST_GRADE):
        raise ConfigError(
            f"expected the highest grade of the scale (--max-grade, in Python: max_grade) as a number above 0 and at "
            f"most {LARGEST_GRADE}, found {stated!r}"
        )
    if grades is None:
        if stated is not None:
            raise ConfigError(
                "--max-grade (in Python: max_grade) has no effect: there are no grades. Give some (--labels, a column "
                "label), or leave it out"
            )
        return None
    values = grades if isinstance(grades, np.ndarray) else grades.to_numpy()
    check_grades(values, "label", file=file or None)
    highest = float(np.max(values, where=~np.isnan(values), initial=0))
    if stated is None:
        return max(highest, least or 0.0)
    if least is not None and stated < least:
        raise ConfigError(
            f"expected a highest grade (--max-grade, in Python: max_grade) of at least {least:g}, that of the "
            f"vocabulary, found {stated:g}. Leave it out to take over that scale"
        )
    if highest > np.float32(stated):
        row = int(np.nanargmax(values))
        of = f" of {document(row)}" if document is not None else ""
        raise DataError(
            f"expected grades of at most {stated:g}, the highest of the scale, found {highest:g}{of}",
            fix="Give the highest grade of the scale with --max-grade (in Python: max_grade), or correct the grade.",
            file=file or None,
            row=row + 1,
            field="label",
        )
    return float(stated)
