"""Recognises errors of a full disk and of memory that ran out, however libraries word them."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

MIB = 1 << 20
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEMORY = (
    "resource_exhausted",  # of XLA
    "bad_alloc",  # of C++
    "out of memory",  # of XLA and DuckDB
    "malloc of size",  # of Arrow
    "unable to allocate",  # of NumPy
    "cannot allocate memory",  # of the system
    "failed to map segment",  # of a library that is loaded
    "can't start new thread",  # which needs a stack
    "failed to launch worker thread",  # of Arrow
)


def disk_problem(error: BaseException) -> str | None:
    """Finds the words for a disk without room in an error or one that led to it; None where it is none of that kind."""
    for link in _chain(error):
        for number in _DISK:
            if (isinstance(link, OSError) and link.errno == number) or os.strerror(number) in str(link):
                return os.strerror(number).lower()
    return None


def memory_problem(error: BaseException) -> str | None:
    """Finds what an error, or one that led to it, says of memory that ran out; None where it is none of that kind."""
    if disk_problem(error) is not None:
        return None
    for link in _chain(error):
        lines = [line for line in str(link).splitlines() if line.strip()] or [type(link).__name__]
        found = next((line for line in lines if any(words in line.lower() for words in _MEMORY)), None)
        if found is not None:
            return found.strip()[:200]
        if isinstance(link, MemoryError) or (isinstance(link, OSError) and link.errno == errno.ENOMEM):
            return lines[0].strip()[:200]
    return None


def address_space(mebibytes: int) -> bool:
    """Tells whether the process may map so much more memory; nothing of it is used."""
    try:
        mmap.mmap(-1, mebibytes * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
    except (OSError, MemoryError):
        return False
    except (AttributeError, TypeError, ValueError):  # not on Windows
        return True
    return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
