"""Comparing methods over seeds and logs: a study in TOML, cells that are made once, one table with its tests."""

from ultr.study.reading import parse, read
from ultr.study.results import collect
from ultr.study.running import run
from ultr.study.spec import Data, Log, Method, Study
from ultr.study.tables import markdown

__all__ = ["Data", "Log", "Method", "Study", "collect", "markdown", "parse", "read", "run"]
