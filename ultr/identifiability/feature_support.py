"""`support_of`: how far documents lie inside the features of those that a log has shown."""

from __future__ import annotations

import numpy as np

from ultr.errors import DataError

OUTSIDE = 0.01  # support below which a document counts as outside: farther out than 99 % of those shown
_FLAT = 1e-9  # relative variance below which the shown documents do not vary in a direction


def support_of(features_shown: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Computes how well documents are supported by those that were shown: [M] in [0, 1].

    The support of a document is the share of the shown documents that lie at least as far from their common centre as
    it does, by Mahalanobis distance (leverage, up to a constant). Documents of the kind that was shown have every
    support alike; one beyond all that was shown has 1 / (N + 1), and 0 where it differs in a direction in which the
    shown documents do not differ at all. Linear maps of the features change nothing.

    Args:
      features_shown: [N, F].
      features: [M, F].

    Raises:
      DataError: not two tables of the same finite features, or no document shown.
    """
    shown, other = np.asarray(features_shown, np.float64), np.asarray(features, np.float64)
    if shown.ndim != 2 or other.ndim != 2 or shown.shape[1] != other.shape[1] or not len(shown):
        raise DataError(f"expected tables [N, F] and [M, F] of features, found {shown.shape} and {other.shape}")
    if not (np.isfinite(shown).all() and np.isfinite(other).all()):
        raise DataError("expected finite features, found others", field="features")
    centre, spread = shown.mean(0), shown.std(0)
    scale = np.where(spread > 0, spread, np.maximum(np.abs(centre), 1.0))
    x, y = (shown - centre) / scale, (other - centre) / scale
    variance, direction = np.linalg.eigh(x.T @ x / len(x))
    flat = variance <= _FLAT * max(variance.max(initial=0.0), 1e-300)
    inside = direction[:, ~flat] / np.sqrt(variance[~flat])
    own, far = np.square(x @ inside).sum(1), np.square(y @ inside).sum(1)
    at_least = len(own) - np.searchsorted(np.sort(own) * (1 - 1e-9), far, side="left")
    beyond = (np.abs(y @ direction[:, flat]) > 1e-6).any(1)
    return np.asarray(np.where(beyond, 0.0, (at_least + 1) / (len(own) + 1)))
