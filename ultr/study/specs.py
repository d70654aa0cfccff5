"""What the package has to know of a method before it runs: names, families, needs and options, as plain data."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Literal

from ultr.study.options import Option

Need = Literal["propensity", "affine", "displays", "logging_policy", "ranks"]
LearnsFrom = Literal["clicks", "grades", "nothing"]
Assumption = Literal["last-click", "click-above", "cascade", "trust", "noise"]
Examination = Literal["none", "given", "learnt", "modelled"]
Builder = Literal["towers", "frozen", "dropout", "position-weighted", "regression", "policy-gradient", "counted"]

# Networks over features by the names of `--relevance`: class, and which settings of `ModelConfig` it takes.
NETWORK_TOWERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "linear": ("ultr.towers.Linear", ()),
    "mlp": ("ultr.towers.MLP", ("hidden",)),
    "dcn": ("ultr.towers.DCNV2", ("hidden",)),
}
COMPRESSED_TABLES = ("hashed", "quotient-remainder", "robe")
TABLES = ("table", *COMPRESSED_TABLES)
NETWORKS = tuple(NETWORK_TOWERS)
RELEVANCE_TOWERS = ("auto", *TABLES, *NETWORKS)
TRANSFORMS = ("standardise", "log1p")
OPTIMIZERS = ("adam", "lazy-adam", "lazy-adagrad")


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """A method of `ultr train` and `ultr compare`: one row of `ultr.study.registry.METHODS`.

    Attributes:
      name: its name on the command line and in TOML.
      family: the heading that it stands under in help and tables; one of `ultr.study.registry.FAMILIES`.
      summary: one line of description.
      paper: author and year of its sources, such as "Richardson 2007; Craswell 2008"; empty where there is none.
      makes: dotted name of the class that is trained; empty where no class of the package is.
      towers: argument of that class -> name of the method of `ultr.study.tower_factory.TowerFactory` for the tower.
        A method without towers is not trained by `ultr.fit` and has none of its settings: `solvers` count a log for
        it, or a package trains it.
      needs: what it takes beside the towers: "propensity" (examination by rank), "affine" (trust parameters alpha and
        beta), "displays" (how often each document was shown at each rank), "logging_policy" (a network fitted to the
        displayed order), "ranks" (their number).
      arguments: further arguments of the class, fixed by the method, such as the form of a loss.
      assumes: the checks of `ultr.propensity.goodness_of_fit` whose failure contradicts what it assumes of clicks; none
        for one that assumes nothing. A method that is given propensities assumes what their estimators assume, one with
        trust parameters that clicks do not depend on clicks above.
      examination: what a log has to tell of examination by rank: "none", nothing; "given", as much as its estimate
        takes, without which it is refused; "learnt", the same, since the ranker is what is left of clicks without it
        (`ultr.study.support` refuses what would be noise and warns of what rests on features); "modelled", part of a
        likelihood whose click probabilities are right without it: warned of.
      learns_from: "clicks" of a log, "grades" of the train lists, or "nothing".
      options: options of its own.
      solvers: methods of `ultr.solve` that can train it on tables.
      builder: the function of `ultr.study.building` that makes the model; "towers" hands towers, needs and options to
        the class, "counted" the numbers of documents and ranks.
      package: the package of the extra `peers` that trains it.
    """

    name: str
    family: str
    summary: str
    paper: str = ""
    makes: str = ""
    towers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
    assumes: tuple[Assumption, ...] = ()
    examination: Examination = "none"
    learns_from: LearnsFrom = "clicks"
    options: tuple[Option, ...] = ()
    solvers: tuple[str, ...] = ()
    builder: Builder = "towers"
    package: str | None = None

    @property
    def is_click_model(self) -> bool:
        """Tells whether it makes a click model: such methods may be joined to a mixture, as in `pbm+dbn`."""
        return self.makes.startswith("ultr.models.")

    @property
    def trained_on_log(self) -> bool:
        """Tells whether `ultr train` trains it on the clicks of a log: by gradient steps, or by a solver alone."""
        return bool(self.towers or self.solvers) and self.learns_from == "clicks"

    @property
    def by_gradient(self) -> bool:
        """Tells whether gradient steps train it; those without towers only have solvers."""
        return bool(self.towers)

    @property
    def takes_propensities(self) -> bool:
        """Tells whether it is given propensities or trust parameters."""
        return bool({"propensity", "affine"} & set(self.needs))

    @property
    def reads_documents(self) -> bool:
        """Tells whether one of its towers is the document tower that `relevance` chooses."""
        return "document" in self.towers.values()

    @property
    def made_class(self) -> type:
        """Imports the class that is trained.

        Raises:
          ValueError: the method has none.
        """
        return import_class(self.makes)

    def option(self, name: str) -> Option | None:
        """Finds an option of the method by name."""
        return next((option for option in self.options if option.name == name), None)

    def defaults(self) -> dict[str, object]:
        """Returns the default of each option."""
        return {option.name: option.default for option in self.options}


def import_class(dotted: str) -> type:
    """Imports a class by its dotted name.

    Raises:
      ValueError: the name is empty.
    """
    module, _, name = dotted.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found
