"""Values whose types the type checker cannot see: fields that are there in a test, parts of a model."""

from __future__ import annotations

from typing import Any

from flax import nnx


def present(value: Any) -> Any:
    """Returns a value that must not be None."""
    assert value is not None
    return value


def split_parameters(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Splits a model into its graph, its parameters and the rest of its state."""
    graph, params, *others = nnx.split(model, nnx.Param, ...)
    (rest,) = others
    return graph, params, rest
