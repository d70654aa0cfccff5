"""The options of `prepare` about the folder that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ultr.data.click_log import ClickLog
from ultr.data.collection import Collection
from ultr.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Output:
    """Describes the folder to make.

    Attributes:
      path: the folder.
      parent: the log or collection whose ids are kept, or None.
      split: name -> share of the lists, or None for no splits.
      split_by: a name of `SPLITS` in `preparing`.
      seed: decides the assignment to splits.
      max_grade: the highest grade of the scale, or None for that of the parent or of the grades.
      overwrite: whether a log or collection that stands at `path` may be replaced.
      pages: what ranks that start again with other documents are, a name of `views.PAGES`; None: not said.
      progress: counts the lists.
    """

    path: Path
    parent: ClickLog | Collection | None
    split: Mapping[str, float] | None
    split_by: str
    seed: int
    max_grade: float | None
    overwrite: bool
    pages: str | None
    progress: tqdm[object]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary whose ids are kept, or None."""
        return None if self.parent is None else self.parent.vocabulary


def split_names(codes: np.ndarray, split: Mapping[str, float]) -> pa.Array:
    """Maps the indices of splits [n] to their names."""
    return pa.array(list(split), pa.string()).take(pa.array(codes))
