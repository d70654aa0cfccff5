"""Reads a study from TOML, with strict keys and values: what is wrong is said before anything is made."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultr import simulate
from ultr.errors import ConfigError
from ultr.study import checks
from ultr.study.effects import takes_setting
from ultr.study.options import Option, check_keys, options_of, read_options, readable_type
from ultr.study.registry import METHODS, method_spec
from ultr.study.settings import JudgedData, LogSpec, Study, StudyMethod

# Arguments of `simulate.Policy`, `user` and `clicks` that the study sets, or other keys of a log.
NOT_LOG_OPTIONS = (
    "collection", "policy", "model", "seed", "out", "overwrite", "progress", "user", "ranker", "name", "grades",
    "contexts", "times", "return",
)  # fmt: skip
LOG_MINIMUMS = {"sessions": 1, "ranks": 1, "zipf": 0}

STUDY_SETTINGS = options_of(Study, without=("data", "logs", "methods", "file"))
LOG_SETTINGS = options_of(LogSpec, without=("options",))
METHOD_SETTINGS = options_of(StudyMethod, without=("name", "model", "options", "grid"))


def log_options() -> dict[str, Option]:
    """Lists the options of `simulate` that a log may have, by name."""
    found: dict[str, Option] = {}
    for owner in (simulate.Policy, simulate.user, simulate.clicks):
        for name, annotation in typing.get_type_hints(owner).items():
            if name not in NOT_LOG_OPTIONS:
                found.setdefault(name, Option(name, readable_type(annotation), minimum=LOG_MINIMUMS.get(name)))
    return found


def read_study(path: str | Path) -> Study:
    """Reads a study from a TOML file; relative paths in it start from its folder.

    Raises:
      ConfigError: no such file, not TOML, an unknown key or a value of another kind: names file, table and key.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}. Give the TOML file that describes the comparison") from error
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{file}, row {row}: expected UTF-8 text, found other bytes. Save the file as UTF-8"
        ) from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: not TOML for a study: brackets in brackets, too many of them") from error
    return parse_study(tree, folder=file.absolute().parent, file=file)


def parse_study(tree: Mapping[str, Any], *, folder: Path = Path(), file: Path | None = None) -> Study:
    """Makes a study from the tables that TOML gives; errors as of `read_study`.

    Args:
      folder: where relative paths start from.
      file: the name for errors.
    """
    source = str(file or "study")
    where = f"{source}, the top level"
    check_keys(tree, [*STUDY_SETTINGS, "data", "log", "method", "defaults"], where)
    given = read_options(tree, STUDY_SETTINGS.values(), where)
    data = _read_data(tree.get("data", {}), folder, f"{source}, [data]")
    logs = [
        _read_log(table, folder, f"{source}, [[log]] {number}")
        for number, table in enumerate(_tables(tree, "log", where), 1)
    ]
    shared_where = f"{source}, [defaults]"
    shared = check_keys(tree.get("defaults", {}), METHOD_SETTINGS, shared_where)
    defaults = read_options(shared, METHOD_SETTINGS.values(), shared_where)
    methods = [
        _read_method(table, defaults, folder, f"{source}, [[method]] {number}")
        for number, table in enumerate(_tables(tree, "method", where), 1)
    ]
    study = Study(data=data, logs=tuple(logs), methods=tuple(methods), file=file, **given)
    checks.check_study(study, source)
    return study


def _tables(tree: Mapping[str, Any], name: str, where: str) -> list[Any]:
    found = tree.get(name, [])
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where}: expected at least one [[{name}]] table, found {found!r}")
    return found


def _read_data(table: Any, folder: Path, where: str) -> JudgedData:
    options = options_of(JudgedData)
    given = read_options(check_keys(table, options, where), options.values(), where)
    if "collection" in given:
        given["collection"] = _path(folder, given["collection"])
        return JudgedData(**given)
    folders: dict[str, Any] = {name: str(_path(folder, text)) for name, text in given.items()}
    return JudgedData(**folders)


def _read_log(table: Any, folder: Path, where: str) -> LogSpec:
    for key in ("contexts", "times"):
        if isinstance(table, Mapping) and key in table:
            raise ConfigError(
                f"{where}: a study simulates no '{key}': simulate the log by itself (ultr.simulate.clicks, ultr "
                "simulate) and give its folder as 'path'"
            )
    options = log_options()
    check_keys(table, [*LOG_SETTINGS, *options], where)
    given = read_options(table, LOG_SETTINGS.values(), where)
    if "name" not in given:
        raise ConfigError(f"{where}: expected a 'name', found none")
    if "path" in given:
        given["path"] = _path(folder, given["path"])
        extra = [key for key in table if key not in ("name", "path", "split")]
        if extra:
            raise ConfigError(f"{where}: '{extra[0]}' belongs to simulated logs; this one has a path")
        return LogSpec(**given)
    if "split" in given:
        raise ConfigError(f"{where}: 'split' belongs to a log with a path; this one is simulated")
    chosen = {name: options[name].read(table[name], where) for name in table if name in options}
    log = LogSpec(**given, options=chosen)
    checks.check_simulated_log(log, where)
    return log


def _read_method(table: Any, defaults: Mapping[str, Any], folder: Path, where: str) -> StudyMethod:
    model = table.get("model") if isinstance(table, Mapping) else None
    name = table.get("name", model) if isinstance(table, Mapping) else None
    where += f" ({name})" if name else ""
    if not isinstance(model, str):
        raise ConfigError(f"{where}: expected a 'model', found {model!r}; known: {', '.join(METHODS)}")
    try:
        spec = method_spec(model)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    settings = {name: option for name, option in METHOD_SETTINGS.items() if takes_setting(spec, name)}
    own = {option.name: option for option in spec.options}
    choices = settings | own
    check_keys(table, ["name", "model", *choices, "grid"], where)
    grid_where = f"{where}, grid"
    grid_table = check_keys(table.get("grid", {}), choices, grid_where)
    grid = {key: choices[key].read_several(values, grid_where) for key, values in grid_table.items()}
    name = Option("name", str).read(name, where)
    given = {key: value for key, value in defaults.items() if key in settings}
    given |= read_options(table, settings.values(), where)
    for key in grid:
        if key in table:
            raise ConfigError(f"{where}: '{key}' has no effect beside the grid's values of it: leave one of them out")
    method = StudyMethod(
        name, model, **given, options=read_options(table, spec.options, where), grid=grid
    )  # fmt: skip
    for source in (*([method.propensity] if "propensity" in given else []), *grid.get("propensity", ())):
        checks.check_propensity(source, where)
    checks.check_effects(method, table, where)
    checks.check_effects(method, grid, grid_where)
    checks.check_trust(method, [table.get("propensity")], where)
    checks.check_trust(method, grid.get("propensity", ()), grid_where)
    found: dict[str, Any] = {"propensity": _source(folder, method.propensity)}
    if "propensity" in grid:
        found["grid"] = grid | {"propensity": tuple(_source(folder, source) for source in grid["propensity"])}
    return dataclasses.replace(method, **found)


def _path(folder: Path, text: str) -> Path:
    return folder / Path(text).expanduser()


def _source(folder: Path, propensity: str) -> str:
    """Resolves a source of propensities that is a file."""
    return str(_path(folder, propensity)) if propensity.endswith(".json") else propensity
