"""What a training keeps to go on from: its settings, which must be the same, and what was trained so far."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ultr.data.dataset import Dataset
from ultr.data.input_schema import InputSchema
from ultr.errors import ConfigError
from ultr.training.checkpoint import describe, read_meta, restore_arrays


def run_settings(
    model: nnx.Module,
    schema: InputSchema | None,
    identities: list[Any],
    settings: Mapping[str, Any] | None,
    **numbers: Any,
) -> dict[str, Any]:
    """Collects what must be the same on resuming, as JSON gives it back."""
    data = dict(zip(("train", "valid"), identities, strict=True))
    setting: dict[str, Any] = {"inputs": None if schema is None else schema.to_json()}  # told first where it differs
    setting |= numbers | {"model": _description(model)} | data | {"settings": dict(settings or {})}
    try:
        found: dict[str, Any] = json.loads(json.dumps(setting, default=_plain_value))
    except TypeError as error:
        raise ConfigError(f"settings: expected values that JSON can hold, found another: {error}") from error
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} ({value!r})")


def _description(model: Any) -> Any:
    try:
        return describe(model)
    except ConfigError:
        return type(model).__name__


def restore_run(
    directory: Path, setting: dict[str, Any], like: Any, judged: Dataset | None
) -> tuple[dict[str, Any], Any]:
    """Reads the facts and arrays of an interrupted run.

    Args:
      directory: where its state is kept.
      setting: what must be the same, of `run_settings`.
      like: arrays of the same structure.
      judged: the validation data.

    Raises:
      ConfigError: no such state, or a setting that differs.
    """
    meta = read_meta(directory)
    if meta["format"] != "ultr-state":
        raise ConfigError(f"{directory}: expected the state of an interrupted run, found a {meta['format']}")
    for name, value in setting.items():
        if name == "inputs" and name not in meta:  # a state of an earlier version
            continue
        was = meta.get(name)
        if was is None and name in ("train", "valid", "optimizer"):
            if name != "optimizer" and value is None and not (name == "valid" and judged is None):
                warnings.warn(
                    f"whether the {name} data is that of the interrupted run cannot be checked: it has no identity",
                    stacklevel=4,
                )
            continue  # not known, or kept before it was recorded
        for key, before, now in _differences(name, was, value):
            raise ConfigError(
                f"{directory}: the interrupted run had another {key} ({before!r}, now {now!r}). "
                "Resume with the same settings, or start in another folder"
            )
    return meta["run"], restore_arrays(directory, like)


def interrupted_epoch(directory: Path, found: Any, block_sessions: int) -> dict[str, Any] | None:
    """Checks what was kept of an epoch that was interrupted; None where the run was stopped between two epochs."""
    if found is None:
        return None
    if found["block_sessions"] != block_sessions:
        raise ConfigError(
            f"{directory}: the interrupted run had another block_sessions ({found['block_sessions']}, now "
            f"{block_sessions}), which decides what was trained of its last epoch. Resume with the same"
        )
    kept: dict[str, Any] = found
    return kept


def _differences(name: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Finds the leaves at which two JSON values differ, with dotted names."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(k for k in now if k not in was)]:
            yield from _differences(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now and not (was != was and now != now):  # NaN is NaN
        yield name, was, now
