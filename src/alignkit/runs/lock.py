"""One writer at a time: a lock that the kernel takes back when its holder dies.

It is a POSIX record lock on a small file that names the holder. Such a lock belongs to one process: no rank and no data
worker that outlives a killed run inherits it, so that the run can be resumed at once. It is lost as soon as its process
closes the file, for whatever it was opened: nothing else here may open one. Who only reads asks for no lock.

On a file system that cannot lock (some network ones), the age of the file decides, which its holder renews.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from alignkit.errors import RunError

logger = logging.getLogger(__name__)

LOCK = ".lock"  # its name in a folder that is written
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_MOST_TRIES = 100  # each is one holder that left while we came
_RENEWED_SECONDS, _ENDED_SECONDS = 20.0, 120.0  # a stamp is renewed so often; one so old belongs to no living process
_SETTLED_SECONDS = 1.0  # two that found the same old stamp: the later writer has it

_held: dict[Path, int] = {}  # a process may lock what it has locked: the kernel would not tell one run from another


@contextmanager
def hold(target: Path, file: Path) -> Iterator[None]:
    """Hold a lock while the block runs, and leave nothing behind.

    Args:
        target: what is written, for messages.
        file: the lock's own file; folders that it needs are made.

    Raises:
        RunError: another process holds it, or the file cannot be made.
    """
    if _held.get(file.absolute()) == os.getpid():
        raise RunError(_refusal(target, f"this process, {os.getpid()}"))
    made = [folder for folder in file.absolute().parents if not folder.exists()]
    try:
        descriptor = _locked(target, file)
        stamp = None if descriptor is not None else _stamped(target, file)
    except OSError as error:
        _remove_empty(made)
        raise RunError(f"{target} cannot be written: {error.strerror} ({file})") from error
    owner = _held[file.absolute()] = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # not a forked process, which holds nothing
            del _held[file.absolute()]
            if stamp is not None:
                stamp.set()
            with suppress(OSError):
                file.unlink()  # before the lock goes, so that nobody holds a file without a name
            if descriptor is not None:
                os.close(descriptor)
            _remove_empty(made)


def is_held(file: Path) -> bool:
    """Tell whether a process writes behind this lock, without a lock of one's own."""
    if _held.get(file.absolute()) == os.getpid():
        return True
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)
    except OSError:  # a file system that cannot lock: a stamp, by its age
        return time.time() - os.fstat(descriptor).st_mtime < _ENDED_SECONDS
    finally:
        os.close(descriptor)


def _locked(target: Path, file: Path) -> int | None:
    """Open and lock the file; None where the file system cannot lock."""
    for _ in range(_MOST_TRIES):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, file):
                with suppress(OSError):  # on a full disk it is held all the same, by nobody of a name
                    os.truncate(descriptor, 0)
                    os.write(descriptor, _me())
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _HELD_BY_ANOTHER:
                raise RunError(_refusal(target, _holder(_read(file)))) from None
            if error.errno in _CANNOT_LOCK:
                return None
            raise
        os.close(descriptor)  # its last holder has just removed it
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _stamped(target: Path, file: Path) -> threading.Event:
    """Write a stamp, unless a living one is there, and renew it until the event is set."""
    logger.warning(
        "%s: this file system cannot lock, so that two processes are kept apart by a file that its writer renews every "
        "%.0f seconds; after a kill on another machine, wait for %.0f",
        target,
        _RENEWED_SECONDS,
        _ENDED_SECONDS,
    )
    me, mine = _me(), file.with_name(f"{file.name}.{socket.gethostname()}.{os.getpid()}")
    mine.write_bytes(me)
    before = _read(file)
    age = mine.stat().st_mtime - file.stat().st_mtime  # both by the clock of the file system
    if before and age < _ENDED_SECONDS and not _is_dead(before):
        mine.unlink()
        raise RunError(_refusal(target, f"{_holder(before)}, its stamp {max(age, 0):.0f} s old"))
    mine.replace(file)
    time.sleep(_SETTLED_SECONDS)
    if (now := _read(file)) != json.loads(me):
        raise RunError(_refusal(target, _holder(now)))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEWED_SECONDS):
            with suppress(OSError):
                os.utime(file)

    threading.Thread(target=renew, name="lock", daemon=True).start()
    return ended


def _me() -> bytes:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode()


def _read(file: Path) -> dict[str, object]:
    """Read who holds a lock that this process does not hold; empty where the file does not say."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _holder(content: dict[str, object]) -> str:
    if not content:
        return "another process"
    return f"process {content.get('pid')} on {content.get('host')}, since {content.get('since')}"


def _refusal(target: Path, holder: str) -> str:
    return f"{target} is being written by {holder}: wait until it has ended, or choose another name"


def _is_dead(content: dict[str, object]) -> bool:
    """Tell whether the holder was a process of this machine that is no more (or had our number before us)."""
    pid = content.get("pid")
    if content.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has a number that large
        return True
    except OSError:
        pass
    return False


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
