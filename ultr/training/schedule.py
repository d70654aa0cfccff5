"""How long to train: rows per step, passes per epoch, and after how many steps validation judges."""

from __future__ import annotations

STEPS_PER_EPOCH = 100  # at least, where the data allows
BATCH_SIZES = (64, 2048)
FIRST_JUDGEMENT = 128  # steps; a shorter epoch is judged at its end alone


def batch_size_for(rows: int) -> int:
    """Computes a batch size, a power of two from 64 to 2,048, that gives a pass a hundred steps or more."""
    least, most = BATCH_SIZES
    return min(max(1 << (max(rows // STEPS_PER_EPOCH, 1).bit_length() - 1), least), most)


def passes_per_epoch(rows: int, batch_size: int) -> int:
    """Computes how many passes over data with so many rows make an epoch of a hundred steps or more."""
    return -(-STEPS_PER_EPOCH // max(-(-rows // batch_size), 1))


def is_judgement_due(steps: int, judged: int) -> bool:
    """Tells whether to judge within an epoch: after half as many steps again as at the last judgement.

    A log of many sessions on few documents is learnt long before its first epoch ends, and another is still being
    learnt in its tenth: intervals that grow geometrically find the best step of both, at a bounded cost.

    Args:
      steps: made so far.
      judged: how many of them were made at the last judgement; 0: there was none.
    """
    return steps - judged >= max(FIRST_JUDGEMENT, judged // 2)
