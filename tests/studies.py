"""A small collection with splits and a small study of it, for the tests that compare methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ultr import simulate
from ultr.data.collection import write_collection

STUDY = """
seeds = [0, 1]
metrics = ["ndcg@10", "mrr@10"]
baseline = "naive"
reference = "full-information"
valid_share = 0.3
[data]
collection = "collection"
train = "train"
vali = "vali"
test = "test"
[[log]]
name = "some log"
user = "pbm"
policy = "linear"
temperature = 1.0
sessions = 1500
ranks = 4
[defaults]
relevance = "linear"
epochs = 2
[[method]]
model = "logger"
[[method]]
model = "random"
[[method]]
model = "naive"
[[method]]
model = "pbm"
grid = {l2 = [0.0, 1000.0]}
[[method]]
name = "ips"
model = "ips-listwise"
clip = 20.0
grid = {propensity = ["true", "conditional-likelihood"]}
[[method]]
model = "full-information"
"""


def study_text(*changes: tuple[str, str]) -> str:
    """Returns the small study as TOML, with the first occurrence of each text replaced by another."""
    text = STUDY
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def write_small_collection(path: Path) -> Path:
    """Writes graded lists of 45 queries with 6 documents each, a third in each of the splits train, vali and test."""
    made = simulate.collection(queries=45, documents=6, features=3, seed=0)
    queries, documents = made.vocabulary.tables()
    names = np.repeat(["train", "vali", "test"], 15).tolist()
    write_collection(path, queries=queries, documents=documents, features=made.vocabulary.feature_names,
                     splits=pa.array(names), split_names=["train", "vali", "test"])  # fmt: skip
    return path
