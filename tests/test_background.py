"""Computing ahead in background threads."""

from __future__ import annotations

from functools import partial
from typing import Any

from ultr.background import run_ahead


def test_tasks_ahead_are_few_in_order_and_dropped_with_the_stream() -> None:
    began: list[int] = []
    given: list[int] = []

    def tasks() -> Any:
        def begin(number: int) -> int:
            began.append(number)
            return number

        for number in range(50):
            given.append(number)
            yield partial(begin, number)

    results = run_ahead(tasks(), depth=3, workers=2)
    for expected in range(20):
        assert next(results) == expected
        assert given == list(range(expected + 4))
    results.close()
    assert set(began) <= set(range(23))
    assert list(run_ahead(iter([lambda: 1, lambda: 2]), depth=3, workers=2)) == [1, 2]
