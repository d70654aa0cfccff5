"""Click logs, their counts, and collections of graded lists, in memory and on disk."""

from ultr.data.click_log import ClickLog, open_data
from ultr.data.collapsing import collapse, open_counted
from ultr.data.collection import Collection, write_collection
from ultr.data.counts import Counts
from ultr.data.dataset import BatchSource, Dataset, DatasetLike, Description, InMemory, SufficientStatistics, as_dataset
from ultr.data.splits import assign_split, query_folds
from ultr.data.vocabulary import Vocabulary
from ultr.data.writer import LogWriter

__all__ = [
    "BatchSource",
    "ClickLog",
    "Collection",
    "Counts",
    "Dataset",
    "DatasetLike",
    "Description",
    "InMemory",
    "LogWriter",
    "SufficientStatistics",
    "Vocabulary",
    "as_dataset",
    "assign_split",
    "collapse",
    "open_counted",
    "open_data",
    "query_folds",
    "write_collection",
]
