"""What a comparison is made of: dataclasses of a study."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultr import simulate
from ultr.study.methods import Kind, kind_of


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
      model: a name in `ultr.study.methods.KINDS` or a mixture of click models such as `pbm+dbn`.
      relevance, hidden, transform, rows: the relevance tower, as in `ultr.study.registry.ModelConfig`.
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
        return kind_of(self.model)

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


def policy_of(log: Log) -> simulate.Policy:
    """The logging policy of a simulated log."""
    names = {field.name for field in dataclasses.fields(simulate.Policy)}
    return simulate.Policy(log.policy, **{n: v for n, v in log.options.items() if n in names})


def user_of(log: Log, *, grades: int) -> Any:
    """The user of a simulated log, for lists with this highest grade."""
    names = inspect.signature(simulate.user).parameters
    return simulate.user(log.user, grades=grades, **{n: v for n, v in log.options.items() if n in names})


def slug(name: str) -> str:
    """The name as part of a path."""
    return re.sub(r"\s+", "_", name)


def plain(value: Any) -> Any:
    """A dataclass of a study as JSON values; paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return json.loads(json.dumps(value, default=str))
