"""Synthetic collections for demonstrations and tests."""

from __future__ import annotations

import numpy as np

from ultr.data import Collection


def collection(*, queries: int, documents: int = 20, features: int = 16, noise: float = 0.3, seed: int) -> Collection:
    """Makes a synthetic collection, whose grades are a smooth non-linear function of the features.

    The quality of a document is a random two-layer function of its features plus normal noise. The best 5 % of all
    documents have grade 4, the next 10, 15 and 20 % the grades 3, 2 and 1, and the rest grade 0.

    Args:
      queries, documents: number of queries, and of documents per query.
      features: number of features F.
      noise: standard deviation of the noise, relative to that of the function of the features.
      seed: decides everything that is random.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(queries * documents, features)).astype(np.float32)
    hidden = np.tanh(x @ rng.normal(size=(features, 24)) / np.sqrt(features) * 2)
    quality = hidden @ rng.normal(size=24)
    quality = quality / quality.std() + noise * rng.normal(size=quality.shape)
    grade = np.searchsorted(np.quantile(quality, [0.5, 0.7, 0.85, 0.95]), quality)
    return Collection.from_arrays(query=np.repeat(np.arange(queries), documents), label=grade, features=x)
