"""Locks of folders that end with their process and say who holds them, and scratch folders that are swept.

Two processes that write one folder destroy each other's work. `locked` takes the kernel's advisory lock (flock) on a
small file: it is gone with its process, however that ended, and holds for all containers of a machine. The file also
says who holds it, for people, and for network file systems that do not pass such locks on to other machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ultr.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows: what the file says decides alone
    fcntl = None  # type: ignore[assignment]

INSIDE = ".ultr.lock"  # of a folder that is filled where it stands
SCRATCH_LOCK = ".lock"
SCRATCH = ".ultr-scratch-"
# File systems of other machines, which need not know of locks that are held there.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse")


@dataclasses.dataclass(frozen=True)
class Owner:
    """Says who holds a lock.

    Attributes:
      process: its number.
      machine: name of the machine.
      boot: what tells one start of a machine's kernel from another; "" where that is not known.
      since: seconds since 1970.
      command: the command line.
    """

    process: int
    machine: str
    boot: str
    since: float
    command: str

    @classmethod
    def here(cls) -> Owner:
        """Describes this process."""
        program, *arguments = sys.argv or ["python"]
        name = Path(program).parent.name if Path(program).name == "__main__.py" else Path(program).name
        command = " ".join([name, *arguments])
        return cls(os.getpid(), platform.node(), _boot(), time.time(), command[:500])

    @classmethod
    def read(cls, descriptor: int) -> Owner | None:
        """Reads what a lock's file says; None where it says nothing, or nothing that can be read."""
        try:
            found = json.loads(os.pread(descriptor, 1 << 14, 0))
            return cls(
                int(found["process"]),
                str(found["machine"]),
                str(found["boot"]),
                float(found["since"]),
                str(found["command"]),
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def write(self, descriptor: int) -> None:
        """Writes the file of a lock."""
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(dataclasses.asdict(self)) + "\n").encode(), 0)

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.process} on {self.machine} ({self.command}), since {began}"

    def may_live(self, file: Path, *, kernel_knows: bool) -> bool:
        """Tells whether the process of a lock that this process could take may work elsewhere still.

        Args:
          file: of the lock.
          kernel_knows: whether this machine's kernel keeps locks of that file.
        """
        here = Owner.here()
        if self.boot == here.boot and self.boot:
            return not kernel_knows and _alive(self.process)
        if self.machine == here.machine:
            return not self.boot and not kernel_knows and _alive(self.process)  # else the machine was started anew
        return not kernel_knows or _on_network(file)


class _Held:
    """The locks that this process holds: by file, the thread and how many blocks of it."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.files: dict[str, tuple[int, int]] = {}


_HELD = _Held()


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], *, inside: bool = False) -> Iterator[None]:
    """Keeps other processes, and other threads of this one, from writing a folder within the block.

    A thread that holds the lock may enter again. Missing parents are made, and removed again where they stay empty.

    Args:
      folder: the folder; it need not exist.
      inside: whether the folder is filled where it stands, so that the lock's file lies in it; else beside it.

    Raises:
      ConfigError: somebody else holds the lock: says who, and what to do.
    """
    target = Path(os.path.realpath(folder))
    file = target / INSIDE if inside else target.with_name(f".{target.name}.lock")
    if inside and target.exists() and not target.is_dir():
        raise ConfigError(f"{folder} is a file: give --out a folder")
    made = [parent for parent in (file.parent, *file.parent.parents) if not parent.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    key, thread = str(file), threading.get_ident()
    with _HELD.guard:
        holder, times = _HELD.files.get(key, (thread, 0))
        if holder != thread:
            raise ConfigError(f"{folder} is being written by another thread of this process: wait for it")
        descriptor = None if times else _acquire(file, Path(folder))
        _HELD.files[key] = (thread, times + 1)
    try:
        yield
    finally:
        with _HELD.guard:
            _, times = _HELD.files.pop(key)
            if times > 1:
                _HELD.files[key] = (thread, times - 1)
            elif descriptor is not None:
                with contextlib.suppress(OSError):
                    os.unlink(file)  # before it is let go: whoever waits for it sees that it is another file now
                os.close(descriptor)
                for parent in made:
                    with contextlib.suppress(OSError):
                        parent.rmdir()


def _acquire(file: Path, folder: Path) -> int:
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except IsADirectoryError as error:
            raise ConfigError(
                f"{file} is a folder, where the file is kept that locks {folder} while it is written. Rename or remove "
                "it, or choose another --out"
            ) from error
        try:
            kernel_knows = _flock(descriptor)
            owner = Owner.read(descriptor)
            if kernel_knows is False:
                who = str(owner) if owner else "another process"
                raise ConfigError(f"{folder} is being written by {who}. Wait for it, or choose another --out")
            if kernel_knows and not _is_file(descriptor, file):
                os.close(descriptor)  # whoever held it has just removed it
                continue
            if owner and owner.may_live(file, kernel_knows=kernel_knows is True):
                raise ConfigError(
                    f"{folder} is locked by {owner}, which cannot be asked from here. Wait for it, choose another "
                    f"--out, or, if you know that it has ended, remove {file}"
                )
            Owner.here().write(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        return descriptor


def _flock(descriptor: int) -> bool | None:
    """Takes the kernel's lock; returns False where somebody holds it, None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except OSError:
        return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _on_network(file: Path) -> bool:
    """Tells whether a file lies on a file system of another machine, as far as that is known."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return True
    place = os.path.realpath(file)
    kinds = {mount[1]: mount[2] for mount in mounts if os.path.commonpath([place, mount[1]]) == mount[1]}
    kind = kinds[max(kinds, key=len)] if kinds else ""
    return kind.split(".")[0] in NETWORK


class Scratch:
    """A folder for intermediate files, which the next process sweeps away if this one is killed.

    Args:
      beside: an existing folder to make it in; None: the system's folder for such files.

    Attributes:
      path: the folder.
    """

    def __init__(self, beside: Path | None = None) -> None:
        sweep(beside)
        self.path = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=beside))
        # Under its own name only when it is locked, so that nobody takes the folder for one that was left.
        new = self.path / f"{SCRATCH_LOCK}.new"
        self._descriptor: int | None = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _flock(self._descriptor)
        with contextlib.suppress(OSError):  # of a full disk, say: then it stays where it is if this process is killed
            Owner.here().write(self._descriptor)
            os.rename(new, self.path / SCRATCH_LOCK)

    def remove(self) -> None:
        """Removes the folder with all that it holds; again, nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: Any) -> None:
        self.remove()


def sweep(beside: Path | None = None) -> None:
    """Removes the scratch folders in a folder, by default the system's for such files, whose processes are gone."""
    for left in Path(beside or tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        file = left / SCRATCH_LOCK
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # somebody else's, or being made or removed
            continue
        try:
            kernel_knows, owner = _flock(descriptor), Owner.read(descriptor)
            if kernel_knows is not False and owner and not owner.may_live(file, kernel_knows=kernel_knows is True):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(descriptor)
