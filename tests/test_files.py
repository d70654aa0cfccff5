"""Files and folders stand complete or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ultr.errors import WriteError
from ultr.files import new_folder, recover, write_text


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def folder(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "a.txt").write_text(text)
    return path


@pytest.mark.parametrize("before", ["nothing", "empty", "old"])
def test_a_folder_appears_when_the_block_ends(tmp_path: Path, before: str) -> None:
    target = tmp_path / "deep" / "f"
    if before == "old":
        folder(target, "old")
    elif before == "empty":
        target.mkdir(parents=True)
    with new_folder(target) as aside:
        assert list(aside.iterdir()) == []
        (aside / "b.txt").write_text("new")
        assert target.exists() == (before != "nothing")
        assert (content(target) if target.exists() else {}) == ({"a.txt": "old"} if before == "old" else {})
    assert content(tmp_path) == {"deep/f/b.txt": "new"}
    assert [p.name for p in target.parent.iterdir()] == ["f"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_old_folder_stands(tmp_path: Path, error: Any) -> None:
    target = folder(tmp_path / "f", "old")
    with pytest.raises(error), new_folder(target) as aside:  # noqa: PT012
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


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    folder(tmp_path / ".f.0123abcd.partial", "half")
    folder(tmp_path / ".f.4567cdef.old", "older")
    others = [
        folder(tmp_path / name, "other") for name in (".f.v2.0123abcd.partial", ".f.partial.x", ".g.0123abcd.old")
    ]
    folder(tmp_path / "f", "old")
    with new_folder(tmp_path / "f") as aside:
        (aside / "b.txt").write_text("new")
    assert content(tmp_path / "f") == {"b.txt": "new"}
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "f", *others])


def test_what_stood_there_comes_back_where_a_process_was_killed_while_it_replaced_it(tmp_path: Path) -> None:
    folder(tmp_path / ".f.0123abcd.partial", "new")
    folder(tmp_path / ".f.0123abcd.old", "old")
    recover(tmp_path / "f")
    assert content(tmp_path) == {"f/a.txt": "old"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    folder(tmp_path / "f", "old")
    expected = rf"f: cannot be written: {os.strerror(number).lower()}\. Make room, or choose a folder on another disk"
    with pytest.raises(WriteError, match=expected), new_folder(tmp_path / "f"):
        raise OSError(number, os.strerror(number), "a.txt")
    with pytest.raises(WriteError, match=expected), new_folder(tmp_path / "f"):
        raise ValueError(f"RESOURCE_EXHAUSTED: Failed to write 3 bytes: {os.strerror(number)}")  # as libraries say it
    with pytest.raises(OSError, match="i/o") as other, new_folder(tmp_path / "f"):
        raise OSError(errno.EIO, "i/o error")
    assert not isinstance(other.value, WriteError)
    assert content(tmp_path) == {"f/a.txt": "old"}


WITH_A_LIMIT = """
import resource, sys
from pathlib import Path
from ultr.files import check_room, write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
check_room(folder, 1000)
write_bytes(folder / "whole", b"x" * 1000)
for write in (lambda: check_room(folder, 1001), lambda: write_bytes(folder / "half", b"x" * 1001)):
    try:
        write()
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs a system that reserves room")
def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WITH_A_LIMIT, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert said.lower().count("file too large") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


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
