"""Two processes do not write one folder, and what killed processes left is swept."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ultr.errors import ConfigError
from ultr.files import check_output_folder, new_folder
from ultr.locks import INSIDE, SCRATCH, Owner, Scratch, locked, sweep

HOLD = """
import sys
from pathlib import Path
from ultr.locks import Scratch, locked
with locked(sys.argv[1], inside=sys.argv[2] == "inside"), Scratch(Path(sys.argv[1]).parent) as scratch:
    (scratch / "data").write_text("x")
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds the lock of a folder, and a scratch folder beside it, within a block."""

    def __init__(self, folder: Path, *, inside: bool = False) -> None:
        command = [sys.executable, "-c", HOLD, str(folder), "inside" if inside else "beside"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def __enter__(self) -> Holder:
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *_: object) -> None:
        self.process.communicate(b"")


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("inside", [False, True])
def test_another_process_is_named_and_the_lock_ends_with_it(tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Holder(out, inside=inside) as other:
        who = rf"process {other.process.pid} on \S+ \(-c \S+ (inside|beside)\), since 20\d\d-"
        expected = rf"out is being written by {who}.*\. Wait for it, or choose another"
        with pytest.raises(ConfigError, match=expected), locked(out, inside=inside):
            pytest.fail("the block is not entered")
        if not inside:
            with pytest.raises(ConfigError, match="is being written by"), new_folder(out):
                pytest.fail("the block is not entered")
    with locked(out, inside=inside):
        pass
    assert left(tmp_path) == ["out"]
    assert left(out) == []


@pytest.mark.parametrize("inside", [False, True])
def test_the_lock_and_the_scratch_of_a_killed_process_are_taken_over(tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Holder(out, inside=inside) as other:
        other.kill()
    assert [name.startswith(SCRATCH) for name in left(tmp_path)].count(True) == 1
    check_output_folder(out)
    with locked(out, inside=inside), Scratch(tmp_path) as mine:
        assert [tmp_path / name for name in left(tmp_path) if name.startswith(SCRATCH)] == [mine]
    assert left(tmp_path) == ["out"]
    assert left(out) == []


def test_the_scratch_of_a_living_process_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Holder(tmp_path / "out"):
        before = left(tmp_path)
        sweep(tmp_path)
        with Scratch(tmp_path):
            pass
        assert left(tmp_path) == before
    assert left(tmp_path) == ["out"]


def test_a_thread_may_enter_again_and_another_thread_may_not(tmp_path: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with locked(tmp_path / "deep" / "out"):
                found.append("entered")
        except ConfigError as error:
            found.append(str(error))

    with locked(tmp_path / "deep" / "out"), locked(tmp_path / "deep" / "out"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1
    assert "out is being written by another thread of this process" in found[0]
    assert left(tmp_path) == []  # with the parents that were made for the lock


def write_lock(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(dataclasses.asdict(Owner.here()) | {"process": 2**22 + 1} | changes))


def test_a_lock_from_before_a_restart_is_stale(tmp_path: Path) -> None:
    write_lock(tmp_path / ".out.lock", boot="another start")
    with locked(tmp_path / "out"):
        pass
    assert left(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "x"}', "[" * 9000])
def test_a_lock_that_says_nothing_is_stale(tmp_path: Path, text: str) -> None:
    (tmp_path / ".out.lock").write_text(text)
    with locked(tmp_path / "out"):
        pass


def test_a_lock_of_another_machine_counts_where_the_kernel_does_not_know_of_it(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(Owner.here(), machine="other.machine", boot="another start")
    assert elsewhere.may_live(tmp_path / "x", kernel_knows=False)
    assert not elsewhere.may_live(tmp_path / "x", kernel_knows=True)  # a disk of this machine
    here = Owner.here()
    assert here.may_live(tmp_path / "x", kernel_knows=False)
    assert not here.may_live(tmp_path / "x", kernel_knows=True)
    gone = dataclasses.replace(here, process=2**22 + 1)
    assert not gone.may_live(tmp_path / "x", kernel_knows=False)


def test_a_file_is_no_folder_to_fill(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="out is a file: give --out a folder"), locked(tmp_path / "out", inside=True):
        pytest.fail("the block is not entered")
    assert INSIDE not in left(tmp_path)


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "out"
    file = out / ".ultr.lock" if inside else tmp_path / ".out.lock"
    file.mkdir(parents=True)
    message = rf"{file} is a folder.*remove it, or choose another --out"
    with pytest.raises(ConfigError, match=message), locked(out, inside=inside):
        pytest.fail("the block is not entered")
    assert file.is_dir()
