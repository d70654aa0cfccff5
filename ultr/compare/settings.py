"""What `ultr compare` reads: dataclasses of a study, and the TOML they come from, with strict keys."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultr import simulate
from ultr.compare.methods import KINDS, Kind
from ultr.errors import ConfigError

NAME = re.compile(r"[\w+@=.,-][\w+@=., -]*")
SEPARATE = ("train", "vali", "test")


@dataclasses.dataclass(frozen=True)
class Data:
    """The graded lists.

    Attributes:
      collection: folder of a collection with splits; None: `train`, `vali` and `test` are folders of their own.
      train: the queries that simulated logs are drawn from and that `reference` learns from.
      vali: the queries by whose grades `reference` alone is chosen.
      test: the queries that every method is judged on; nothing is chosen by them.
    """

    collection: Path | None = None
    train: str | None = None
    vali: str | None = None
    test: str | None = None


@dataclasses.dataclass(frozen=True)
class Log:
    """One log: simulated anew for every seed, or real.

    Attributes:
      name: of the log in tables and files.
      path: folder of a real log; None: simulated.
      split: of a real log, the split to learn from; None: all of it.
      user: the simulated user, a name of `ultr.simulate.user`.
      policy: the ranker of the logging policy.
      options: further options of `simulate.user`, `simulate.Policy` and `simulate.clicks`, by their names.
    """

    name: str
    path: Path | None = None
    split: str | None = None
    user: str = "pbm"
    policy: str = "linear"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
      name: of the row.
      model: a name in `ultr.compare.methods.KINDS` or a mixture of click models such as `pbm+dbn`.
      relevance, hidden, transform, rows: the relevance tower, as in `ultr.config.ModelConfig`.
      epochs, patience: passes over the log, at most, and without improvement; of a log with fewer than a hundred steps,
        as many times more as make a hundred.
      batch_size: sessions (or counted rows) per step; 0: chosen so that an epoch has a hundred steps or more.
      learning_rate: of networks. table_rate: how many times higher that of tables is.
      l2: strength of a Gaussian prior on the parameters, in the unit of one session's log-likelihood.
      propensity: where a method that weighs takes examination from: "true", an estimator of `ultr.propensity`, or a
        file that `ultr propensity --json` wrote.
      options: of the model, such as `clip`.
      grid: setting -> values to choose from, without test grades.
    """

    name: str
    model: str
    relevance: str = "auto"
    hidden: tuple[int, ...] = (64, 64)
    transform: str = "standardise"
    rows: int | None = None
    epochs: int = 50
    patience: int = 5
    batch_size: int = 0
    learning_rate: float = 0.003
    table_rate: float = 10.0
    l2: float = 0.0
    propensity: str = "conditional-likelihood"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """The row of `KINDS`; a mixture is a click model."""
        return KINDS[self.model if self.model in KINDS else self.model.split("+")[0]]

    def variants(self) -> list[tuple[dict[str, Any], Method]]:
        """Every setting of the grid, with the method that has it; one without a grid."""
        known = {field.name for field in dataclasses.fields(self)}
        out = []
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            own = {k: v for k, v in chosen.items() if k in known}
            options = dict(self.options) | {k: v for k, v in chosen.items() if k not in known}
            out.append((chosen, dataclasses.replace(self, **own, options=options, grid={})))
        return out


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that a comparison is made of.

    Attributes:
      file: where it was read from; None: made in Python.
      metrics: ranking metrics, the first of them decides in tests and gaps.
      baseline: the method that the others are tested against.
      reference: the method that learns from grades: the upper end of the gap. None: no gap.
      valid_share, test_share: shares of a log held out, by query (by session for tables), to choose settings by and
        to judge click models on.
      diagnose: whether to say, before training, what each log identifies.
    """

    data: Data
    logs: tuple[Log, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ("ndcg@10",)
    baseline: str | None = None
    reference: str | None = None
    valid_share: float = 0.15
    test_share: float = 0.1
    diagnose: bool = True
    file: Path | None = None


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
    "contexts", "shares", "times",
)  # fmt: skip


def log_options() -> dict[str, Any]:
    """Options of `simulate` that a log may have, with their defaults."""
    out: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(simulate.Policy)}
    for function in (simulate.user, simulate.clicks):
        for name, parameter in inspect.signature(function).parameters.items():
            out.setdefault(name, parameter.default)
    return {name: default for name, default in out.items() if name not in SIMULATED}


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
    options = {}
    for key in table.tree:
        if key in defaults:
            default = defaults[key]
            kind = {bool: "bool", int: "float", float: "float", str: "str"}.get(type(default))
            value = table.tree[key] if kind is None else table.value(key, kind)
            options[key] = int(value) if isinstance(default, int) and isinstance(value, float) else value
    if "sessions" in options:
        options["sessions"] = int(options["sessions"])
    if "name" not in given:
        raise ConfigError(f"{table.where}: expected a 'name', found none")
    return Log(**given, options=options)


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
    kind = KINDS[model if model in KINDS else model.split("+")[0]]
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
    method = Method(**given, options=options, grid=grid)
    if method.propensity.endswith(".json"):
        method = dataclasses.replace(method, propensity=str(_resolve(folder, method.propensity)))
    return method


def _kind_of(default: Any) -> str:
    return "float" if default is None else type(default).__name__


def _check_propensity(source: str, where: str) -> None:
    from ultr.propensity import METHODS

    known = ["true", *METHODS]
    if source not in known and not source.endswith(".json"):
        hint = _near(source, known)
        raise ConfigError(
            f"{where}: unknown propensity '{source}'{hint}; known: {', '.join(known)}, or a file that ends in .json"
        )


def _check(study: Study, where: str) -> None:
    for what, names in (("log", [x.name for x in study.logs]), ("method", [x.name for x in study.methods])):
        for name in names:
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"{where}: the {what} name '{name}' has signs other than letters, digits and + @ = . , -"
                )
        twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
        if twice:
            raise ConfigError(f"{where}: two {what}s are called '{twice[0]}': give each a name of its own")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise ConfigError(f"{where}: expected different seeds of at least 0, found {list(study.seeds)}")
    if not study.metrics:
        raise ConfigError(f"{where}: expected at least one metric, such as ndcg@10, found none")
    methods = [m.name for m in study.methods]
    for role in ("baseline", "reference"):
        chosen = getattr(study, role)
        if chosen is not None and chosen not in methods:
            hint = _near(chosen, methods)
            raise ConfigError(f"{where}: {role} '{chosen}' is no method{hint}; methods: {', '.join(methods)}")
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


_ROLE = {"train": "simulated logs are drawn from", "test": "methods are judged on"}


def plain(value: Any) -> Any:
    """A dataclass of a study as JSON values; paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return json.loads(json.dumps(value, default=str))
