"""Imports go one way: from a module to its own package or to a lower layer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ultr

PACKAGE = Path(ultr.__file__).parent
LAYERS = [
    [
        *("arguments", "errors", "exhaustion", "files", "text", "lazy", "locks", "stopping", "background", "hashing"),
        *("logspace", "compilation_cache", "holm", "sessions"),
    ],
    ["clicks", "data"],
    ["towers", "ingest"],
    ["rankers"],
    ["models"],
    ["baselines", "simulate", "propensity"],
    ["training", "evaluation", "identifiability"],
    ["study", "plots"],
    ["cli", "__main__"],
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    """The top-level modules of ultr that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "ultr":
                found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
            elif node.module.startswith("ultr."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ultr.")}
    return found


def test_every_module_has_a_layer() -> None:
    modules = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert modules - {"__init__"} == set(LAYER)


@pytest.mark.parametrize("name", [n for n in LAYER if n != "__main__"])
def test_imports_go_down(name: str) -> None:
    path = PACKAGE / name
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
        for other in imports(file) - {name}:
            allowed = LAYER[other] < LAYER[name] or (LAYER[other] == LAYER[name] == 0)
            assert allowed, f"{file.relative_to(PACKAGE)} imports ultr.{other}, which is not below it"


def test_no_module_unpickles_or_uses_private_modules_of_others() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in {"pickle", "joblib", "cloudpickle", "dill", "marshal"}, file
                assert not any(part.startswith("_") and part != "__future__" for part in name.split(".")), file


def test_importing_the_package_is_quick() -> None:
    # Nothing heavy is loaded for `import ultr` and for the command's help.
    code = (
        "import sys, ultr, ultr.cli; "
        "heavy = {'jax', 'flax', 'duckdb', 'ibis', 'orbax', 'pandas', 'pyarrow'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)})
