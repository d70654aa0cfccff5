"""Narrows optional values for the type checker, and fails where they are missing."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """Returns a value that must not be None."""
    assert value is not None
    return value
