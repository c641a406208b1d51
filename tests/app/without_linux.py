"""A script as on Windows: python without_linux.py SCRIPT WORD ...; without words, all modules and scripts are imported.

What Windows lacks is hidden from our modules only: torch and Python's own libraries know which system they are on. Worker processes come
here too, as they are started by `spawn`. With -X warn_default_encoding, a text of ours whose encoding is left to the system is an error.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import importlib
import multiprocessing
import os
import pkgutil
import runpy
import signal  # noqa: F401 - copied by `like_windows`
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = ("ldm", "__main__", "__mp_main__", "convert", "emoji", "make_emoji")
ABSENT = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
LACKING = {
    "os": (
        "O_DIRECTORY", "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "setsid",
        "killpg", "wait", "mkfifo", "mknod", "chown", "lchown", "pread", "pwrite", "posix_fallocate", "posix_fadvise", "sendfile", "uname",
        "statvfs", "fstatvfs", "sysconf", "nice", "getloadavg", "sched_getaffinity", "sched_setaffinity", "register_at_fork", "getxattr",
    ),
    "signal": ("SIGKILL", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT", "SIGPIPE", "alarm", "setitimer"),
}  # fmt: skip


def open_file(path: Any, flags: int, *rest: Any) -> int:
    if stat.S_ISDIR(os.stat(path).st_mode) if os.path.exists(path) else False:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags, *rest)


def flush(handle: int) -> None:
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(handle)


def refuse(*details: Any, **more: Any) -> Any:
    raise OSError(errno.EPERM, "A required privilege is not held by the client")


def no_library(name: str | None, **more: Any) -> Any:
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    raise FileNotFoundError(name)


CHANGED: dict[str, dict[str, Callable[..., Any]]] = {
    "os": {"open": open_file, "fsync": flush, "symlink": refuse, "readlink": refuse},
    "ctypes": {"CDLL": no_library},
}
plain_import = builtins.__import__


def like_windows(name: str) -> ModuleType:
    """A copy of one of Python's modules, with what it has there."""
    made = ModuleType(name)
    vars(made).update({key: value for key, value in vars(sys.modules[name]).items() if key not in LACKING.get(name, ())})
    vars(made).update(CHANGED.get(name, {}))
    return made


def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """In place of `__import__`."""
    importer = globals or {}
    if importer.get("__name__", "").partition(".")[0] not in OURS or importer.get("__file__") == __file__:
        return plain_import(name, globals, locals, fromlist, level)
    if name in ABSENT:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    found = plain_import(name, globals, locals, fromlist, level)
    return like_windows(name) if name in LACKING | CHANGED else found


def only_spawn(method: str | None = None) -> Any:
    if method not in (None, "spawn"):
        raise ValueError(f"cannot find context for {method!r}")
    return spawn


spawn = multiprocessing.get_context("spawn")
multiprocessing.get_all_start_methods = lambda: ["spawn"]  # type: ignore[method-assign]
multiprocessing.get_context = only_spawn  # type: ignore[assignment]
builtins.__import__ = import_
warnings.filterwarnings("error", category=EncodingWarning, module=r"ldm\b")


def import_everything() -> None:
    import ldm

    for module in pkgutil.walk_packages(ldm.__path__, "ldm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    sys.path.insert(0, str(ROOT / "scripts"))
    for script in sorted((ROOT / "scripts").glob("*.py")):
        importlib.import_module(script.stem)
    assert not hasattr(sys.modules["ldm.core.files"].os, "fork")
    assert not hasattr(sys.modules["ldm.training.lock"], "fcntl") and not hasattr(sys.modules["ldm.training.preflight"], "resource")
    print("imported", sum(name.partition(".")[0] == "ldm" for name in sys.modules))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        import_everything()
    else:
        sys.argv = [str(ROOT / "scripts" / f"{sys.argv[1]}.py"), *sys.argv[2:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
