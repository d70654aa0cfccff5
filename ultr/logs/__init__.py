"""Click logs and annotated collections on disk."""

from ultr.logs.collapse import collapse, open_counted
from ultr.logs.collection import Collection, write_collection
from ultr.logs.counts import Counts
from ultr.logs.splits import assign_split
from ultr.logs.store import ClickLog, open_data
from ultr.logs.vocabulary import Vocabulary
from ultr.logs.writer import LogWriter

__all__ = [
    "ClickLog",
    "Collection",
    "Counts",
    "LogWriter",
    "Vocabulary",
    "assign_split",
    "collapse",
    "open_counted",
    "open_data",
    "write_collection",
]
