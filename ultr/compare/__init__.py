"""Comparing methods over seeds and logs: a study in TOML, cells that are made once, one table with its tests."""

from ultr.compare.reading import parse, read
from ultr.compare.result import collect
from ultr.compare.run import run
from ultr.compare.settings import Data, Log, Method, Study
from ultr.compare.table import markdown

__all__ = ["Data", "Log", "Method", "Study", "collect", "markdown", "parse", "read", "run"]
