"""Writing files: with mode 0600 from the start, replaced as a whole, by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bundle.errors import ConfigError, SayOnce, WriteError

# How a network's or a virtual machine's shared folder says that it cannot do something.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})
_say_once = SayOnce()


def write_private(path: Path, text: str, *, only_if_absent: bool = False) -> None:
    """Write a file that only its owner can read. At any time, even after a crash, it has the whole old or new text.

    Raises WriteError when trying again may help (disk full, read-only file system), else ConfigError.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if not only_if_absent or not _link(temporary, path):
                Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from None
    with suppress(OSError):  # the file is in place; shared folders refuse this. A crash then leaves the old, whole text
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _link(temporary: str, path: Path) -> bool:
    """Give the file its name if nothing has that name. False: only a replacement can do it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        # Shared folders have no hard links.
        if error.errno not in {*UNSUPPORTED, errno.EPERM, errno.EACCES, errno.EMLINK}:
            raise
        return path.exists()
    return True


def write_error(path: Path, error: OSError) -> ConfigError:
    kind = WriteError if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO} else ConfigError
    folder = shlex.quote(str(path.parent))
    return kind(f"cannot write {path}: {error.strerror}.\nCheck with: df -h {folder}; ls -ld {folder}")


Stamp = tuple[tuple[str, int, int, int], ...]


def stamp(paths: Sequence[Path]) -> Stamp:
    """A value that differs after one of the files changed: (path, mtime in ns, size, inode) of each existing file."""
    entries = []
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            entries.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(entries)


def refuse_foreign(path: Path, status: os.stat_result) -> None:
    """Raise ConfigError if the file belongs to a third user, who would choose our key or our server."""
    if status.st_uid not in {0, os.geteuid(), path.parent.stat().st_uid}:
        quoted, folder = shlex.quote(str(path)), shlex.quote(str(path.parent))
        raise ConfigError(
            f"{path} belongs to another user of this machine (uid {status.st_uid}), and is not used.\n"
            f"Remove it, and close the folder to others: chmod go-w {folder}; rm {quoted}"
        )


def read_own(path: Path) -> bytes:
    """The bytes of a file that no third user has put there. Raises OSError or ConfigError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # (opening a pipe would wait for ever)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        refuse_foreign(path, status)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        return file.read()


def make_private_folder(path: Path) -> None:
    """Make a folder and its missing parents, all for the owner alone. (`mkdir(parents=True)` takes the mode for the
    last one only.)"""
    for folder in [*reversed(path.parents), path]:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def require_home(environ: Mapping[str, str]) -> None:
    """Raise ConfigError if the folder in which PM2 keeps its files cannot be written, or be made."""
    name = "PM2_HOME" if environ.get("PM2_HOME") else "HOME"
    home = Path(environ.get(name) or Path.home())
    nearest = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{name} is {home}, and {nearest} cannot be written. PM2 and Claude Code keep their files there.\n"
            f"Check with: ls -ld {shlex.quote(str(nearest))}\nOr use another folder: export {name}=/path/of/a/folder"
        )


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of this folder during the `with` block; wait for it. Where a folder cannot be locked, go on."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(folder / "lock", error) from None
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def instance_lock(path: Path) -> Iterator[int | None]:
    """Hold the lock during the `with` block and yield None; or yield the pid of its holder (0: unknown). Where the
    file system has no locks, yield None all the same."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise write_error(path, error) from None
    try:
        status = os.fstat(descriptor)
        refuse_foreign(path, status)
        if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):  # it is emptied below
            raise ConfigError(f"{path} is a link to another file, and is not used.\nFix: rm {shlex.quote(str(path))}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).strip()
            yield int(holder) if holder.isdigit() else 0
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise write_error(path, error) from None
            _say_once(
                f"{path.parent} has no locks ({error.strerror}), as some network folders: going on without a lock.\n"
                "Run only one token-refresher there."
            )
        with suppress(OSError):  # messages show the pid; a full disk must not stop the refresher
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield None
    finally:
        os.close(descriptor)
