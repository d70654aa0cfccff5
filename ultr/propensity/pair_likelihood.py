"""The all-pairs likelihood, maximised for many resampled logs at once.

    sum over pairs {k, k'} of   c log(p_k r) + m log(1 - p_k r) + c' log(p_k' r) + m' log(1 - p_k' r)

with one relevance r per unordered pair, clicks c and non-clicks m at k, and c', m' at k'. It is the position-based
model with pairs as items. Given the p, the best r is the root of a quadratic equation, so that Newton's method searches
the logarithms of p alone; the profile stays concave, and its Hessian is the Laplacian of a graph over ranks.
"""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy

from ultr import stopping

# The non-clicks that each arm of a pair counts as having at least, as shares of the pair's weight, where its documents
# were clicked whenever they were shown. The last one keeps probabilities below 1; those before it lead there, around
# the corner that the likelihood has where both arms of a pair are close to 1.
BARRIERS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
MAX_STEPS, LONGEST_STEP = 60, 3.0
UNCHECKED, CONVERGED = 1e-9, 1e-15  # squared decrements per click: below them steps need no check, or the search ends
SUFFICIENT_GAIN = 0.2  # the share of a squared decrement that a step must gain; next to the maximum it gains a half


def maximise_pair_likelihood(
    low: np.ndarray,
    high: np.ndarray,
    arms: int,
    sums: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Maximises the likelihood of R logs: log(p_k / p_0), [R, arms]; NaN for arms whose ratio to arm 0 has no maximum.

    Args:
      low, high: [P] arms of each pair, low < high, each pair once.
      arms: number of arms, K.
      sums: [R, P] weighted clicks at the low arm and at the high arm, and the weight of each pair, which is the
        greatest value that either can have.
      start: [arms] log(p) to start from; what is not finite counts as 0.
    """
    inside = bounded_arms(low, high, arms, sums[0] > 0, sums[1] > 0)
    a = np.zeros((len(inside), arms))
    if start is not None:
        a[:] = np.where(np.isfinite(start), start, 0.0) - start[0]
    a[~inside] = 0.0
    non_clicks = sums[2] - np.maximum(sums[0], sums[1])
    converged = np.zeros(len(a), bool)
    for barrier in BARRIERS:
        rows = (non_clicks < barrier * sums[2]).any(1) if barrier > BARRIERS[-1] else np.ones(len(a), bool)
        if rows.any():
            objective = _PairObjective(low, high, sums[0][rows], sums[1][rows], sums[2][rows], inside[rows], barrier)
            a[rows], converged[rows] = _newton_ascent(objective, a[rows])
    a[~inside | ~converged[:, None]] = np.nan
    return a


def bounded_arms(low: np.ndarray, high: np.ndarray, arms: int, at_low: np.ndarray, at_high: np.ndarray) -> np.ndarray:
    """Tells which arms' ratios to arm 0 have a finite maximum: [R, arms] bool.

    A pair clicked at one of its arms alone says that this one is examined more, by any factor; a pair clicked at both
    bounds the factor. The ratio is finite where arms bound each other both ways, perhaps through others.

    Args:
      low, high: [P] arms of each pair.
      arms: number of arms.
      at_low, at_high: [R, P] bool, whether documents of the pair were clicked at that arm.
    """
    edge = np.zeros((len(at_low), arms, arms), np.float32)
    edge[:, low, high], edge[:, high, low] = at_low, at_high
    reachable = []
    for matrix in (edge, edge.transpose(0, 2, 1)):
        reached = np.zeros((len(edge), arms), np.float32)
        reached[:, 0] = 1
        while True:
            more = np.maximum(reached, np.matmul(reached[:, None, :], matrix)[:, 0] > 0)
            if (more == reached).all():
                break
            reached = more
        reachable.append(reached > 0)
    return np.asarray(reachable[0] & reachable[1])


def _newton_ascent(objective: _PairObjective, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Searches from `a`, [R, arms]: (maximum [R, arms], whether the search converged [R])."""
    out, converged = a.copy(), np.zeros(len(a), bool)
    rows = np.arange(len(a))  # the logs whose search goes on
    clicks = np.maximum(objective.clicks.sum(1), 1e-300)
    value = objective.value(a)
    for _ in range(MAX_STEPS):
        stopping.check()
        step, decrement = objective.direction(a)
        near = decrement <= UNCHECKED * clicks
        size = np.minimum(1.0, LONGEST_STEP / np.maximum(np.abs(step).max(1), 1e-300))
        moved = a + size[:, None] * step
        found = objective.value(moved)
        short = ~near & ~(found >= value + SUFFICIENT_GAIN * size * decrement)
        while short.any():
            size[short] = np.where(size[short] > 1e-9, size[short] / 2, 0.0)
            moved[short] = a[short] + size[short, None] * step[short]
            found[short] = objective.select(short).value(moved[short])
            short &= ~(found >= value + SUFFICIENT_GAIN * size * decrement)
        a, value = moved, found
        out[rows], converged[rows] = a, near
        keep = decrement > CONVERGED * clicks
        if not keep.all():
            rows, a, value, clicks, objective = rows[keep], a[keep], value[keep], clicks[keep], objective.select(keep)
            if not len(rows):
                break
    return out, converged


class _PairObjective:
    """The profile likelihood of R logs, over the pairs whose arms are both `inside`, [R, arms] bool."""

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        at_low: np.ndarray,
        at_high: np.ndarray,
        weight: np.ndarray,
        inside: np.ndarray,
        barrier: float,
    ) -> None:
        used = inside[:, low] & inside[:, high]
        self.low, self.high = low, high
        self.sign = np.zeros((len(low), inside.shape[1]))
        self.sign[np.arange(len(low)), low] += 1
        self.sign[np.arange(len(low)), high] -= 1
        self.c = [np.where(used, c, 0.0) for c in (at_low, at_high)]
        self.m = [np.where(used, np.maximum(weight - c, barrier * weight), 0.0) for c in self.c]
        self.clicks = self.c[0] + self.c[1]
        self.fixed = ~inside
        self.fixed[:, 0] = True

    def select(self, rows: np.ndarray) -> _PairObjective:
        """Returns the objective of some of the logs, [R] bool."""
        out = object.__new__(_PairObjective)
        out.low, out.high, out.sign = self.low, self.high, self.sign
        out.c, out.m = [c[rows] for c in self.c], [m[rows] for m in self.m]
        out.clicks, out.fixed = self.clicks[rows], self.fixed[rows]
        return out

    def value(self, a: np.ndarray) -> np.ndarray:
        """Computes the log-likelihoods, [R]."""
        total = np.zeros(len(a))
        for c, m, p in zip(self.c, self.m, self._probabilities(a), strict=True):
            total += np.sum(xlogy(c, p) + xlogy(m, 1 - p), axis=1)
        return total

    def direction(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes Newton steps, [R, arms], and their squared decrements (slope times step), [R]."""
        p = self._probabilities(a)
        miss = [np.maximum(1 - x, 1e-15) for x in p]
        slope = (self.c[0] - self.m[0] * p[0] / miss[0]) @ self.sign  # at the best r, the high arm has minus that
        h = [m * x / q**2 for m, x, q in zip(self.m, p, miss, strict=True)]
        total = h[0] + h[1]
        w = h[0] * h[1] / np.where(total > 0, total, 1.0)
        s = np.zeros((*a.shape, a.shape[1]))
        s[:, self.low, self.high] = s[:, self.high, self.low] = -w
        diagonal = np.arange(a.shape[1])
        s[:, diagonal, diagonal] = -s.sum(2)
        s[np.broadcast_to(self.fixed[:, :, None] | self.fixed[:, None, :], s.shape)] = 0.0
        s[:, diagonal, diagonal] += np.where(self.fixed, 1.0, 1e-300)
        slope[self.fixed] = 0.0
        scale = 1 / np.sqrt(s[:, diagonal, diagonal])
        step = scale * np.linalg.solve(s * scale[:, None, :] * scale[:, :, None], (slope * scale)[..., None])[..., 0]
        return step, np.sum(slope * step, axis=1)

    def _probabilities(self, a: np.ndarray) -> list[np.ndarray]:
        """Computes the click probabilities at the low and at the high arms, given the best r: [R, P] each."""
        low, high = a[:, self.low], a[:, self.high]
        top = np.maximum(low, high)
        t = [np.exp(low - top), np.exp(high - top)]
        u = (self.clicks + self.m[0]) * t[0]
        v = (self.clicks + self.m[1]) * t[1]
        # The smaller root of (N + N') t t' r^2 - (u + v) r + clicks = 0, its discriminant written without cancellation.
        root = np.sqrt((u - v) ** 2 + 4 * t[0] * t[1] * self.m[0] * self.m[1])
        denominator = u + v + root
        r = 2 * self.clicks / np.where(denominator > 0, denominator, 1.0)
        return [t[0] * r, t[1] * r]
