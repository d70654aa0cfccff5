"""Files and folders stand complete or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from ultr.files import new_folder, write_text


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def folder(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "a.txt").write_text(text)
    return path


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("before", ["nothing", "empty", "old"])
def test_a_folder_appears_when_the_block_ends(tmp_path: Path, before: str, single: bool) -> None:
    target = tmp_path / "deep" / "f"
    if before == "old":
        folder(target, "old")
    elif before == "empty":
        target.mkdir(parents=True)
    with new_folder(target, single=single) as aside:
        assert list(aside.iterdir()) == []
        (aside / "b.txt").write_text("new")
        assert target.exists() == (before != "nothing")
        assert (content(target) if target.exists() else {}) == ({"a.txt": "old"} if before == "old" else {})
    assert content(tmp_path) == {"deep/f/b.txt": "new"}
    assert [p.name for p in target.parent.iterdir()] == ["f"]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_old_folder_stands(tmp_path: Path, error: Any, single: bool) -> None:
    target = folder(tmp_path / "f", "old")
    with pytest.raises(error), new_folder(target, single=single) as aside:  # noqa: PT012
        (aside / "b.txt").write_text("half")
        raise error
    assert content(tmp_path) == {"f/a.txt": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "i/o error"), KeyboardInterrupt()])
def test_when_the_second_renaming_fails_the_old_folder_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = folder(tmp_path / "f", "old")
    rename = Path.rename

    def fails(self: Path, other: Path) -> Any:
        if self.name.endswith(".partial"):
            raise error
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(type(error)), new_folder(target) as aside:
        (aside / "b.txt").write_text("new")
    assert content(tmp_path) == {"f/a.txt": "old"}


def test_a_check_is_asked_before_and_after_the_block(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        if path.exists():
            raise FileExistsError(path)

    folder(tmp_path / "old", "old")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "old", check=refuse):
        pytest.fail("the block is not entered")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "raced", check=refuse) as aside:  # noqa: PT012
        (aside / "b.txt").write_text("mine")
        folder(tmp_path / "raced", "theirs")
    assert content(tmp_path) == {"old/a.txt": "old", "raced/a.txt": "theirs"}


def test_what_a_killed_process_left_goes_where_one_alone_writes(tmp_path: Path) -> None:
    left = [folder(tmp_path / ".f.partial", "half"), folder(tmp_path / ".f.old", "older")]
    with new_folder(tmp_path / "f", single=True) as aside:
        assert aside == left[0]
        (aside / "b.txt").write_text("new")
    assert content(tmp_path) == {"f/b.txt": "new"}


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with new_folder(tmp_path / "f") as first, new_folder(tmp_path / "f") as second:
        (first / "a.txt").write_text("first")
        (second / "a.txt").write_text("second")
    assert content(tmp_path) == {"f/a.txt": "first"}  # the first ends last


def test_a_file_is_not_replaced_by_a_folder_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError) as found, new_folder(tmp_path / "file"):
        pytest.fail("the block is not entered")
    assert found.value.filename == str(tmp_path / "file")
    folder(tmp_path / "real" / "f", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "f")
    with new_folder(tmp_path / "link") as aside:
        (aside / "b.txt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"f/b.txt": "new"}


def test_a_text_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_text(file, "one")
    write_text(file, "zwei ≠ 2")
    assert file.read_text(encoding="utf-8") == "zwei ≠ 2"
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half" * 10_000 + "\ud800")
    assert file.read_text(encoding="utf-8") == "zwei ≠ 2"
    assert list(tmp_path.iterdir()) == [file]
