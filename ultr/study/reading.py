"""A study from TOML, with strict keys and values: what is wrong is said before anything is made."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultr import simulate
from ultr.errors import ConfigError
from ultr.evaluation.metrics import RANKING_METRICS, parse_metric
from ultr.study.methods import CLICK_MODELS, KINDS, kind_of
from ultr.study.registry import MODELS
from ultr.study.spec import Data, Log, Method, Study, policy_of, slug, user_of

NAME = re.compile(r"[\w+@=.,-][\w+@=., -]*")
NO_NAMES = (".", "..", "-")  # they mean something else in a path
SEPARATE = ("train", "vali", "test")


def read(path: str | Path) -> Study:
    """A study from a TOML file; relative paths in it start from its folder.

    Raises:
      ConfigError: no such file, not TOML, an unknown key or a value of another kind: names file, table and key.
    """
    file = Path(path)
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}. Give the TOML file that describes the comparison") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    return parse(tree, folder=file.absolute().parent, file=file)


def parse(tree: Mapping[str, Any], *, folder: Path = Path(), file: Path | None = None) -> Study:
    """A study from what TOML gives; errors as of `read`."""
    where = str(file or "study")
    plain = {f.name: f for f in dataclasses.fields(Study) if f.name not in ("data", "logs", "methods", "file")}
    top = _Table(where, "the top level", tree, [*plain, "data", "log", "method", "defaults"])
    given = top.values(plain)
    data = _data(_Table(where, "[data]", top.table("data"), _names(Data)), folder)
    for number, entry in enumerate(top.array("log"), 1):
        for key in ("contexts", "times"):
            if isinstance(entry, Mapping) and key in entry:
                raise ConfigError(
                    f"{where}, [[log]] {number}: a study simulates no '{key}': simulate the log by itself "
                    f"(ultr.simulate.clicks, ultr simulate) and give its folder as 'path'"
                )
    logs = tuple(_log(t, folder) for t in top.tables("log", _log_keys()))
    shared = top.table("defaults")
    methods = tuple(
        _method(where, entry, shared, folder, number) for number, entry in enumerate(top.array("method"), 1)
    )
    study = Study(data=data, logs=logs, methods=methods, file=file, **given)
    _check(study, where)
    return study


class _Table:
    """One TOML table whose keys are known; every error says where it stands."""

    def __init__(self, file: str, name: str, tree: Any, keys: Iterable[str]) -> None:
        self.where = f"{file}, {name}"
        if not isinstance(tree, Mapping):
            raise ConfigError(f"{self.where}: expected a table, found {tree!r}")
        self.file, self.tree, self.keys = file, tree, list(keys)
        for key in tree:
            if key not in self.keys:
                hint = _near(key, self.keys)
                raise ConfigError(f"{self.where}: unknown key '{key}'{hint}; known: {', '.join(self.keys)}")

    def table(self, name: str) -> Mapping[str, Any]:
        return self.tree.get(name, {})

    def array(self, name: str) -> list[Any]:
        found = self.tree.get(name, [])
        if not isinstance(found, list) or not found:
            raise ConfigError(f"{self.where}: expected at least one [[{name}]] table, found {found!r}")
        return found

    def tables(self, name: str, keys: Iterable[str]) -> list[_Table]:
        return [_Table(self.file, f"[[{name}]] {i}", t, keys) for i, t in enumerate(self.array(name), 1)]

    def values(self, fields: Mapping[str, dataclasses.Field[Any]]) -> dict[str, Any]:
        """Those of the fields that are given, of the kind of each field's annotation."""
        return {n: self.value(n, str(f.type)) for n, f in fields.items() if n in self.tree}

    def value(self, name: str, kind: str) -> Any:
        given = self.tree[name]
        value = _converted(given, kind)
        if value is None:
            expected = kind.replace(" | None", "").replace("tuple[", "list of ").replace(", ...]", "")
            raise ConfigError(f"{self.where}: '{name}' should be of kind {expected}, found {given!r}")
        return value


def _converted(value: Any, kind: str) -> Any:
    """The value as the annotation has it; None where it does not fit."""
    kind = kind.removesuffix(" | None")
    if kind.startswith("tuple["):
        inner = kind[len("tuple[") :].removesuffix(", ...]")
        found = [_converted(x, inner) for x in value] if isinstance(value, list) else [None]
        return None if None in found else tuple(found)
    if kind == "bool" or isinstance(value, bool):
        return value if kind == "bool" and isinstance(value, bool) else None
    if kind == "float":
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    if kind == "int":
        return value if isinstance(value, int) else None
    return value if isinstance(value, str) else None


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _resolve(folder: Path, text: str) -> Path:
    return folder / Path(text).expanduser()


def _data(table: _Table, folder: Path) -> Data:
    given: dict[str, Any] = {name: table.value(name, "str") for name in table.tree}
    if "collection" in given:
        given["collection"] = _resolve(folder, given["collection"])
        return Data(**given)
    given = {name: str(_resolve(folder, text)) for name, text in given.items()}
    return Data(**given)


SIMULATED = (
    "collection", "policy", "model", "seed", "out", "overwrite", "progress", "user", "ranker", "name", "grades",
    "contexts", "times",
)  # fmt: skip


def log_options() -> dict[str, Any]:
    """Options of `simulate` that a log may have, with their defaults."""
    out: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(simulate.Policy)}
    for function in (simulate.user, simulate.clicks):
        for name, parameter in inspect.signature(function).parameters.items():
            out.setdefault(name, parameter.default)
    return {name: default for name, default in out.items() if name not in SIMULATED}


def _log_kinds() -> dict[str, str]:
    """The kinds of `log_options`, as `_converted` knows them."""
    out = {f.name: str(f.type) for f in dataclasses.fields(simulate.Policy)}
    for function in (simulate.user, simulate.clicks):
        for name, parameter in inspect.signature(function).parameters.items():
            kind = str(parameter.annotation)
            out.setdefault(name, kind.replace("Sequence[float]", "tuple[float, ...]"))
    return out


def _log_keys() -> list[str]:
    return [n for n in _names(Log) if n != "options"] + list(log_options())


def _log(table: _Table, folder: Path) -> Log:
    known = {f.name: f for f in dataclasses.fields(Log) if f.name != "options"}
    given = table.values(known)
    if "path" in given:
        given["path"] = _resolve(folder, given["path"])
        extra = [key for key in table.tree if key not in ("name", "path", "split")]
        if extra:
            raise ConfigError(f"{table.where}: '{extra[0]}' belongs to simulated logs; this one has a path")
    elif "split" in given:
        raise ConfigError(f"{table.where}: 'split' belongs to a log with a path; this one is simulated")
    else:
        _check_simulated(given.get("user", "pbm"), given.get("policy", "linear"), table.where)
    defaults = log_options()
    kinds = _log_kinds()
    options = {key: table.value(key, kinds[key]) for key in table.tree if key in defaults}
    if "name" not in given:
        raise ConfigError(f"{table.where}: expected a 'name', found none")
    log = Log(**given, options=options)
    if log.path is None:
        _check_options(log, table.where)
    return log


def _check_options(log: Log, where: str) -> None:
    """What `simulate` would refuse, said before anything is made."""
    for name, least in (("sessions", 1), ("ranks", 1), ("zipf", 0)):
        if log.options.get(name, least) < least:
            raise ConfigError(f"{where}: expected '{name}' of at least {least}, found {log.options[name]}")
    try:
        policy_of(log)
        user_of(log, grades=4)  # of the lists; no check depends on it
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_simulated(user: str, policy: str, where: str) -> None:
    users = [part.removesuffix("-bottom-up") for part in user.split("+")]
    for what, given, known in (("user", users, simulate.USERS), ("policy", [policy], simulate.RANKERS)):
        for name in given:
            if name not in known:
                raise ConfigError(f"{where}: unknown {what} '{name}'{_near(name, known)}; known: {', '.join(known)}")


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean '{found[0]}'?)" if found else ""


def _method(file: str, entry: Any, shared: Mapping[str, Any], folder: Path, number: int) -> Method:
    fields = {f.name: f for f in dataclasses.fields(Method) if f.name not in ("options", "grid")}
    model = entry.get("model") if isinstance(entry, Mapping) else None
    name = entry.get("name", model) if isinstance(entry, Mapping) else None
    where = f"[[method]] {number}" + (f" ({name})" if name else "")
    common = _Table(file, "[defaults]", shared, [n for n in fields if n not in ("name", "model")])
    if not isinstance(model, str):
        raise ConfigError(f"{file}, {where}: expected a 'model', found {model!r}; known: {', '.join(KINDS)}")
    for part in [model] if model in KINDS else model.split("+"):
        if part not in KINDS:
            hint = _near(part, KINDS)
            raise ConfigError(f"{file}, {where}: unknown model '{part}'{hint}; known: {', '.join(KINDS)}")
        if part != model and part not in CLICK_MODELS:
            raise ConfigError(
                f"{file}, {where}: a mixture is made of click models, and '{part}' in '{model}' is none; known: "
                f"{', '.join(CLICK_MODELS)}"
            )
    kind = kind_of(model)
    own = [n for n in fields if n in ("name", "model") or kind.takes(n)]
    table = _Table(file, where, entry, [*own, *kind.options, "grid"])
    given = common.values({n: f for n, f in fields.items() if kind.takes(n)})
    given |= {"name": name} | table.values(fields)
    options = {}
    for key, default in kind.options.items():
        if key in table.tree:
            options[key] = table.value(key, _kind_of(default))
    grid = {}
    keys = [n for n in own if n not in ("name", "model")]
    choices = _Table(file, f"{where}, grid", table.table("grid"), [*keys, *kind.options])
    for key, values in choices.tree.items():
        inner = str(fields[key].type) if key in fields else _kind_of(kind.options[key])
        grid[key] = choices.value(key, f"tuple[{inner.removesuffix(' | None')}, ...]")
        if not grid[key]:
            raise ConfigError(f"{choices.where}: '{key}' should have at least one value, found {values!r}")
    for chosen in (given, grid):
        sources = chosen.get("propensity", ())
        for source in [sources] if isinstance(sources, str) else sources:
            _check_propensity(source, table.where)
    if _needs_trust(model, options, grid):
        _check_trusting(model, [table.tree.get("propensity")], table.where)
        _check_trusting(model, grid.get("propensity", ()), choices.where)
    for key, value in [*given.items(), *options.items(), *((k, v) for k, values in grid.items() for v in values)]:
        _check_least(model, key, value, table.where)
    if "propensity" in given:
        given["propensity"] = _source(folder, given["propensity"])
    if "propensity" in grid:
        grid["propensity"] = tuple(_source(folder, source) for source in grid["propensity"])
    return Method(**given, options=options, grid=grid)


def _source(folder: Path, propensity: str) -> str:
    return str(_resolve(folder, propensity)) if propensity.endswith(".json") else propensity


ABOVE_0 = ("learning_rate", "table_rate")
LEAST = {
    "rows": 1, "epochs": 1, "patience": 1, "batch_size": 0, "l2": 0, "hidden": 1, "clip": 0, "every": 1, "rounds": 1,
    "leaves": 2, "least_in_leaf": 0, "most_rows": 1, "threads": 0, "regularisation": 0, "position_regularisation": 0,
}  # fmt: skip


def _check_least(model: str, key: str, value: Any, where: str) -> None:
    least = 1 if key == "clip" and model in ("dla", "upe") else LEAST.get(key)
    for number in value if isinstance(value, tuple) else [value]:
        if key in ABOVE_0 and not number > 0:
            raise ConfigError(f"{where}: expected '{key}' above 0, found {number}")
        if least is not None and number is not None and number < least:
            limit = "; 0: no limit" if key == "clip" and not least else ""
            raise ConfigError(f"{where}: expected '{key}' of at least {least}{limit}, found {number}")


def _kind_of(default: Any) -> str:
    return "float" if default is None else type(default).__name__


def _check_propensity(source: str, where: str) -> None:
    from ultr.propensity import ESTIMATORS

    known = ["true", *ESTIMATORS]
    if source not in known and not source.endswith(".json"):
        hint = _near(source, known)
        raise ConfigError(
            f"{where}: unknown propensity '{source}'{hint}; known: {', '.join(known)}, or a file that ends in .json"
        )


def _needs_trust(model: str, options: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a method takes alpha and beta, whatever is chosen of its grid."""
    chosen = grid.get("trust", (options.get("trust", False),))
    return all(chosen) or (model in MODELS and "affine" in MODELS[model].needs)


def _check_trusting(model: str, sources: Sequence[str | None], where: str) -> None:
    """An estimator of examination has no trust: one that stands in the row of the method would say nothing."""
    from ultr.propensity import ESTIMATORS

    for source in sources:
        if source in ESTIMATORS:
            raise ConfigError(
                f"{where}: 'propensity' as '{source}' says nothing to '{model}', which needs trust as well: expected "
                "true or a .json file. Leave it out, and a trust model is fitted to the training sessions"
            )


def _check(study: Study, where: str) -> None:
    for what, names in (("log", [x.name for x in study.logs]), ("method", [x.name for x in study.methods])):
        for name in names:
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"{where}: the {what} name '{name}' has signs other than letters, digits and + @ = . , -"
                )
            if name in NO_NAMES:
                raise ConfigError(f"{where}: the {what} name '{name}' cannot name a folder: give it letters")
        twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
        if twice:
            raise ConfigError(f"{where}: two {what}s are called '{twice[0]}': give each a name of its own")
        places = dict[str, str]()
        for name in names:
            other = places.setdefault(slug(name).casefold(), name)
            if other != name:
                raise ConfigError(
                    f"{where}: the {what}s '{other}' and '{name}' would be kept in the same folder: give names that "
                    f"differ in more than case, spaces and _"
                )
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise ConfigError(f"{where}: expected different seeds of at least 0, found {list(study.seeds)}")
    if not study.metrics:
        raise ConfigError(f"{where}: expected at least one metric, such as ndcg@10, found none")
    _check_metrics(study.metrics, where)
    methods = [m.name for m in study.methods]
    for role in ("baseline", "reference"):
        chosen = getattr(study, role)
        if chosen is not None and chosen not in methods:
            hint = _near(chosen, methods)
            raise ConfigError(f"{where}: {role} '{chosen}' is no method{hint}; methods: {', '.join(methods)}")
        if role == "reference" and chosen is not None:
            graded = [m.name for m in study.methods if m.kind.learns == "labels"]
            if chosen not in graded:
                known = f"one of {', '.join(graded)}" if graded else "such as a method of the model full-information"
                raise ConfigError(f"{where}: expected a reference that learns from grades ({known}), found '{chosen}'")
    if not (0 < study.valid_share < 1 and 0 <= study.test_share < 1 and study.valid_share + study.test_share < 1):
        raise ConfigError(
            f"{where}: expected valid_share above 0, test_share of at least 0 and less than 1 together, found "
            f"{study.valid_share} and {study.test_share}"
        )
    simulated = any(log.path is None for log in study.logs)
    needed = [n for n in ("train", "test") if getattr(study.data, n) is None]
    if simulated and needed:
        raise ConfigError(f"{where}, [data]: expected '{needed[0]}', the lists that {_ROLE[needed[0]]}; found none")
    if study.data.test is None and study.reference is not None:
        raise ConfigError(f"{where}, [data]: a reference needs 'test', the lists to judge on; found none")
    graded = [m.name for m in study.methods if m.kind.learns == "labels"]
    if graded and (study.data.train is None or study.data.vali is None):
        raise ConfigError(f"{where}, [data]: '{graded[0]}' learns from grades: expected 'train' and 'vali'")


def _check_metrics(metrics: Sequence[str], where: str) -> None:
    for name in metrics:
        try:
            kind = parse_metric(name).metric.kind
        except ConfigError:
            kind = None
        if kind != "ranking":
            known = [f"{m}@k" for m in RANKING_METRICS]
            hint = _near(name, [f"{m}@10" for m in RANKING_METRICS]) if kind is None else ""
            raise ConfigError(f"{where}: expected ranking metrics ({', '.join(known)}), found '{name}'{hint}")
        if list(metrics).count(name) > 1:
            raise ConfigError(f"{where}: the metric '{name}' is given twice: leave one out")


_ROLE = {"train": "simulated logs are drawn from", "test": "methods are judged on"}
