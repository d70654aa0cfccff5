"""Click logs and annotated collections on disk."""

from ultr.logs.collection import Collection, write_collection
from ultr.logs.splits import assign_split
from ultr.logs.store import ClickLog, open_data
from ultr.logs.vocabulary import Vocabulary
from ultr.logs.writer import LogWriter

__all__ = [
    "ClickLog",
    "Collection",
    "LogWriter",
    "Vocabulary",
    "assign_split",
    "open_data",
    "write_collection",
]
