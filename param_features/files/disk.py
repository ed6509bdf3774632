"""Files of a folder that may be a stranger's: read only where they are plain files inside it, written whole or not at all.

A checksum says that a file is what its writer meant, not who wrote it. So a link must not lead out of the folder, a pipe or
a device is not opened, and what is written never goes through a link that somebody left under its name.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from param_features.errors import StoreError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Origin:
    """Where something was read, for messages.

    Attributes:
        where: The file.
        advice: What to do where it cannot be read, as a sentence.
    """

    where: str
    advice: str

    def refuse(self, fault: str, cause: BaseException | None = None) -> NoReturn:
        """Refuse what was read.

        Raises:
            StoreError: Says where, what, and what to do.
        """
        raise StoreError(f"{self.where} {fault}. {self.advice}") from cause


def opened(path: Path, origin: Origin, *, within: Path | None = None) -> int:
    """Open a plain file for reading and return its handle, which the caller closes.

    Args:
        path: The file, or a link to it.
        origin: For messages.
        within: The folder inside which links may lead; the file's own by default. It may itself be reached by a link.

    Raises:
        StoreError: There is no such file; a link leads out of the folder; or it is a folder, a pipe or a device, which is
            not opened.
    """
    try:
        target, root = path.resolve(strict=True), (within or path.parent).resolve(strict=True)
        mode = os.stat(target, follow_symlinks=False).st_mode
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a NUL in the name
        origin.refuse(f"cannot be read ({getattr(error, 'strerror', None) or error})", error)
    if not target.is_relative_to(root):
        origin.refuse(f"is a link that leads out of {root}, and links may lead inside it alone")
    _refuse_other_kinds(mode, origin)
    try:
        handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        origin.refuse(f"cannot be read ({error.strerror})", error)
    try:
        _refuse_other_kinds(os.fstat(handle).st_mode, origin)  # of what was opened, should the name have changed hands
    except StoreError:
        os.close(handle)
        raise
    return handle


def _refuse_other_kinds(mode: int, origin: Origin) -> None:
    if not stat.S_ISREG(mode):
        origin.refuse("is a folder, a pipe or a device, not a plain file")


def read_file(path: Path, origin: Origin, *, within: Path | None = None, most: int | None = None) -> bytes:
    """Read the bytes of a plain file, once.

    Args:
        path: The file.
        origin: For messages.
        within: See `opened`.
        most: Bytes that a file of this kind has at most.

    Raises:
        StoreError: It cannot be opened, see `opened`, or is larger.
    """
    with os.fdopen(opened(path, origin, within=within), "rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        if most is not None and n_bytes > most:
            origin.refuse(f"has {size_text(n_bytes)}, and files of its kind have at most {size_text(most)}")
        try:
            return file.read()
        except OSError as error:
            origin.refuse(f"cannot be read ({error.strerror})", error)


def is_plain_name(name: str) -> bool:
    """Whether it can only name a file of the folder itself: letters, digits, `_`, `.` and `-`, the last two not first."""
    return _NAME.fullmatch(name) is not None


def fresh(path: Path) -> int:
    """Make a new, empty file and return its handle. What bore its name is removed; a link is not followed."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def unfinished(path: Path) -> Path:
    """The name under which a file is written until it is whole."""
    return path.with_name(path.name + ".unfinished")


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place once it is on the disk, so that neither a kill nor a power cut leaves a part of it.

    A link of that name is replaced, not followed.
    """
    try:
        with os.fdopen(fresh(unfinished(path)), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished(path), path)
    except BaseException:
        unfinished(path).unlink(missing_ok=True)  # on a full disk it would take the room that is left
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, so that a rename outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path, who: str) -> Iterator[None]:
    """Keep a second one of `who` out of a folder; the lock goes with the process that holds it.

    Raises:
        StoreError: Another one is at work, or the lock's name is taken by a link.
        OSError: The folder cannot be written.
    """
    import fcntl  # POSIX alone has it

    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise StoreError(f"{folder / '.lock'} is a link, not this library's lock. Remove it.") from error
    with os.fdopen(handle, "rb", buffering=0):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"Another {who} writes to {folder}. Wait for its end, or give another directory.") from error
        yield


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room."""
    return error.errno in _NO_ROOM


def size_text(n_bytes: int) -> str:
    """Write a number of bytes as messages do, in GiB or MiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"
