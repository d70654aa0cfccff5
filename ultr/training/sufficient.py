"""The least of a log that a model's loss depends on, where training on it is less work than on the sessions."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ultr.data.click_log import ClickLog
from ultr.data.collapsing import collapse
from ultr.data.dataset import Dataset, SufficientStatistics
from ultr.data.distinct import share_distinct
from ultr.data.remembered import counts_of
from ultr.rankers import Ranker

COUNTED_FEATURES = frozenset({"document", "features"})  # what counts bring of a document, beside rank and last click
LARGEST_SHARE = 0.5  # of the sessions that may be distinct, where it pays to write them


def statistics_for(model: Any, log: ClickLog) -> SufficientStatistics:
    """Finds which statistics of a log a model can be trained on.

    Counts per document hold neither contexts nor features of impressions: a model that reads these, or that does not
    declare what it reads (`Component.reads`), needs lists.
    """
    if not isinstance(model, Ranker) or log.metadata["impression_features"]:
        return "list"
    if model.sufficient_statistics == "query":
        return "query"
    reads = model.reads
    return model.sufficient_statistics if reads is not None and reads <= COUNTED_FEATURES else "list"


@contextlib.contextmanager
def sufficient(model: Any, data: Dataset) -> Iterator[Dataset]:
    """Collapses a log to what a model's loss depends on, where a pass over that reads fewer documents.

    The loss is the same sum, so that what is learnt has the same optimum; a pass costs as much as there are distinct
    facts, not sessions. Counts are taken where they have fewer rows than the log has impressions; for a model that
    needs lists the distinct lists with the number of their copies as weight, where these are at most half of the
    sessions (`ultr.data.distinct.share_distinct`). They lie in a temporary folder within the block.

    Args:
      model: a `Ranker` declares what it needs; others need the sessions.
      data: what is no click log stays as it is.

    Yields:
      The statistics, or the data as it was given.
    """
    if not isinstance(data, ClickLog) or not isinstance(model, Ranker) or not len(data):
        yield data
        return
    needed = statistics_for(model, data)
    if needed == "query":
        yield collapse(data, "query")
    elif needed != "list":
        by: Literal["rank", "last-click"] = "rank" if needed == "rank" else "last-click"
        counts, impressions = counts_of(data, by), data.metadata["impressions"] / data.metadata["sessions"] * len(data)
        yield counts if counts.rows < impressions else data
    elif share_distinct(data) <= LARGEST_SHARE:
        with tempfile.TemporaryDirectory(prefix="ultr-") as folder:
            yield collapse(data, "list", directory=Path(folder, "lists"))
    else:
        yield data
