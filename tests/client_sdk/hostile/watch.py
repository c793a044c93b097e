"""Sees what a process does, through sys.addaudithook: anything that runs code, starts a program or writes a file."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

FORBIDDEN: Final = frozenset({
    "code.__new__",
    "ctypes.dlopen",
    "function.__new__",
    "marshal.loads",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pickle.find_class",
    "pty.spawn",
    "subprocess.Popen",
    "webbrowser.open",
})  # fmt: skip
CODE: Final = frozenset({"compile", "exec"})
CHANGES: Final = frozenset({
    "os.chflags",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "shutil.rmtree",
})  # fmt: skip
TWO_PATHS: Final = frozenset({"os.link", "os.rename", "os.symlink"})
WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Watch:
    """Notes what happens while it is armed; an audit hook can never be removed, so it lives as long as the process."""

    folder: Path
    armed: bool = False
    seen: list[str] = field(default_factory=list)
    peers: set[int] = field(default_factory=set)

    def install(self) -> None:
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.armed = True
        try:
            yield
        finally:
            self.armed = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        fault = self._fault(event, arguments)
        if fault is not None:
            self.seen.append(f"{event}: {fault}"[:300])

    def _fault(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            return self._opened(*arguments)
        if event == "socket.connect":
            self.peers.add(arguments[1][1])
            return None
        if event in CHANGES:
            return self._changed(arguments[: 2 if event in TWO_PATHS else 1])
        if event in FORBIDDEN and not _imports(sys._getframe()):
            return repr(arguments)
        return repr(arguments) if event in CODE and not _imports(sys._getframe()) else None

    def _opened(self, path: object, mode: str | None, flags: int) -> str | None:
        writes = bool(set(mode or "") & set("wax+")) or bool(flags & WRITE_FLAGS)
        return self._changed((path,)) if writes else None

    def _changed(self, paths: tuple[object, ...]) -> str | None:
        return next((repr(path) for path in paths if not self._is_inside(path)), None)

    def _is_inside(self, path: object) -> bool:
        # A descriptor was opened before, and that was heard.
        if isinstance(path, int):
            return True
        where = Path(os.path.realpath(os.fsdecode(path)))  # type: ignore[arg-type]
        return where == self.folder or self.folder in where.parents


def _imports(frame: FrameType | None) -> bool:
    """Tells whether an import is under way: it runs code, and that code is installed and not the server's."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
