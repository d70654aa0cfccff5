"""README and examples are run, and what they claim is compared with the code."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command

import ultr
from ultr.ingest.readers import READERS
from ultr.study import METHODS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short_and_shows_the_two_commands() -> None:
    assert README.count("\n") < 150
    assert "pip install . && ultr demo" in README
    assert 'pip install ".[test]" && pytest -n auto --dist loadfile' in README


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["fitted"].model.propensity(10).shape == (10,)
    assert (tmp_path / "model" / "meta.json").is_file()


@pytest.mark.slow
def test_the_shell_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = re.findall(r"    (session,query.*?)\n\n", README, re.DOTALL)[0]
    head, *rows = [line.strip() for line in table.splitlines()]
    many = [re.sub(r"^\d+,", f"{session},{session % 20} ", row) for session in range(200) for row in rows]
    Path("clicks.csv").write_text("\n".join([head, *many]) + "\n")
    commands = re.findall(r"^    ultr ((?:prepare|train|evaluate) .*)$", README, re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["prepare", "train", "evaluate"]
    for command in commands:
        assert run_command(*command.split()).code == 0, command


def test_the_table_of_the_readme_names_what_there_is() -> None:
    models = [n for n in vars(ultr.models) if re.fullmatch(r"[A-Z]\w+", n)]
    classes = {n for n in models if issubclass_of(getattr(ultr.models, n), ultr.models.ClickModel)}
    classes -= {"ClickModel", "SlotModel", "LatentVariableModel"}  # which are abstract
    for name in classes:
        assert name in README, name
    logs = next(line for line in README.splitlines() if line.startswith("| logs |"))
    assert set(re.findall(r"`([a-z-]+)`", logs)) >= set(READERS)
    assert len(ultr.simulate.USERS) == 15
    assert len(ultr.simulate.RANKERS) == 6
    assert {"pbm", "ubm", "dbn", "naive"} <= set(METHODS)


def issubclass_of(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


@pytest.mark.slow
def test_the_examples_find_the_truth_that_they_simulate() -> None:
    found = example("python_api").main(sessions=2000)
    assert found["perplexity"].value < 1.6
    relative = example("own_tower").main(sessions=8000)
    np.testing.assert_allclose(relative[0], 1 / np.arange(1, 7), atol=0.08)
    np.testing.assert_allclose(relative[1], 1 / np.arange(1, 7) ** 2, atol=0.08)


def test_the_documents_keep_up_with_the_version() -> None:
    assert f"## {ultr.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for module in (p for p in (ROOT / "ultr").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()):
        if not module.stem.startswith("__"):
            assert f"`{module.stem}`" in contributing, module.stem


def docstrings() -> list[tuple[str, ast.AST, str]]:
    """Every docstring of the package with its place: file and line, and what it describes."""
    found: list[tuple[str, ast.AST, str]] = []
    for file in sorted((ROOT / "ultr").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                found.append((place, node, ast.get_docstring(node) or ""))
    return found


def test_docstrings_begin_with_a_verb_and_none_is_a_fragment() -> None:
    fragment = re.compile(r"(Of|As of|As in|That of|Those of|The same,?) ")
    for place, node, text in docstrings():
        assert not fragment.match(text), place
        if not isinstance(node, ast.FunctionDef) or not text:
            continue
        names = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
        if "property" in names or "click." in names:  # an attribute; the help of a command, which is an order
            continue
        assert re.match(r"[A-Z][a-z]+s\b", text), f"{place}: expected a verb such as 'Returns', found {text[:60]!r}"


def test_every_public_class_has_a_docstring() -> None:
    classes = [(place, node.name, text) for place, node, text in docstrings() if isinstance(node, ast.ClassDef)]
    assert not [(place, name) for place, name, text in classes if not name.startswith("_") and not text]
