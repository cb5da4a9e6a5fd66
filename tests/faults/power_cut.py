"""A program's system calls, and every folder that a power cut could have left of them.

`record` runs a command under strace and keeps the calls that change files below one folder. A disk
promises little: what was written since a file's last fsync may be there, missing, or cut in the
middle; a name that was made, changed or taken away since its folder's last fsync may be as before
or as after, alone or with the others. `Disk.states` gives each combination once.

The calls are understood as Linux has them; memory-mapped writing is refused, for it leaves no
calls.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

WATCHED = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,fsync,fdatasync,close,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,truncate,"
    "copy_file_range,sendfile,link,linkat,symlink,symlinkat,mmap,fallocate"
)
_LINE = re.compile(r"^(\d+) +(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+)(?:<.*>)?(?: .*)?$", re.DOTALL)
_FD = re.compile(r"^(\d+|AT_FDCWD)<(.*?)>(?:\(deleted\))?$")


@dataclass(frozen=True)
class Call:
    """A system call that succeeded."""

    name: str
    words: tuple[str, ...]
    result: int


@dataclass
class Content:
    """What a file holds: for sure, and since its last fsync perhaps."""

    durable: bytes = b""
    written: list[tuple[int, bytes | int]] = field(default_factory=list)

    def now(self, last: Callable[[bytes], bytes] = lambda data: data) -> bytes:
        """The content, `last` applied to what the last call wrote."""
        value = bytearray(self.durable)
        for number, (offset, data) in enumerate(self.written, 1):
            if isinstance(data, int):  # its new length
                value = value[:data].ljust(data, b"\0")
                continue
            data = last(data) if number == len(self.written) else data
            value = value.ljust(offset, b"\0")
            value[offset : offset + len(data)] = data
        return bytes(value)

    def sync(self) -> None:
        """All that was written is on the disk."""
        self.durable, self.written = self.now(), []


#: A path's entry: a file's content, or None of a folder.
Names = dict[str, Content | None]


@dataclass(frozen=True)
class Change:
    """One change of names: `old` goes, `new` comes; either may be missing.

    `content` is of a file that comes.
    """

    old: str | None
    new: str | None
    content: Content | None = None

    @property
    def folders(self) -> set[str]:
        """Whose entries change."""
        return {path.rpartition("/")[0] for path in (self.old, self.new) if path is not None}

    def apply(self, names: Names) -> None:
        """Change `names`, if the names allow it."""
        if self.new is not None and self.new.rpartition("/")[0] not in names:
            return
        if self.old is None:
            assert self.new is not None
            names.setdefault(self.new, self.content)
            return
        below = [n for n in names if n == self.old or n.startswith(self.old + "/")]
        moved = {n[len(self.old) :]: names.pop(n) for n in below}
        if self.new is not None and (moved or self.content is not None):
            # A file's new name can outlive a cut that its old one did not.
            names.update({self.new + n: c for n, c in (moved or {"": self.content}).items()})


@dataclass(frozen=True)
class State:
    """A folder that a power cut could have left.

    Attributes:
        after: so many calls were made.
        kind: what the disk kept, for the message of a failure.
        files: content by path below the folder; None of a folder.
    """

    after: int
    kind: str
    files: Mapping[str, bytes | None]

    def build(self, folder: Path) -> Path:
        """Make the folder anew."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in sorted(self.files):
            content = self.files[name]
            if content is None:
                (folder / name).mkdir(exist_ok=True)
            else:
                (folder / name).write_bytes(content)
        return folder

    @property
    def key(self) -> bytes:
        """Equal for equal folders."""
        digest = sha256()
        for name in sorted(self.files):
            content = self.files[name]
            digest.update(f"{name}\0{-1 if content is None else len(content)}\0".encode())
            digest.update(content or b"")
        return digest.digest()


class Disk:
    """A folder's files under a recording's calls.

    Args:
        folder: that the calls were recorded of.
        before: what lay in it, by path below it; None of a folder.
    """

    def __init__(self, folder: Path, before: Mapping[str, bytes | None]) -> None:
        self._folder = str(folder)
        self._now: Names = {"": None}
        for name, content in before.items():
            self._now["/" + name] = None if content is None else Content(content)
        self._durable = dict(self._now)
        self._pending: list[Change] = []
        self._offsets: dict[tuple[str, int], int] = {}

    def files(self) -> dict[str, bytes | None]:
        """What lies there now, seen by other programs."""
        return _plain(self._now, Content.now)

    def states(self, calls: Sequence[Call]) -> Iterator[State]:
        """Each folder that a cut before or after any of the calls could leave, once."""
        known: set[bytes] = set()
        for after in range(len(calls) + 1):
            if after and not self.take(calls[after - 1]):
                continue
            for state in self._possible(after):
                if (key := state.key) not in known:
                    known.add(key)
                    yield state

    def final_states(self, calls: Sequence[Call]) -> list[State]:
        """What a cut long after the last call could leave: what the program promised is in each."""
        for call in calls:
            self.take(call)
        return list({state.key: state for state in self._possible(len(calls))}.values())

    def _possible(self, after: int) -> Iterator[State]:
        chosen = {"no name changed": [], "all names changed": self._pending}
        if len(self._pending) > 1:
            for change in self._pending:
                chosen[f"only {change.old} -> {change.new}"] = [change]
        contents: dict[str, Callable[[Content], bytes]] = {
            "kept": Content.now,
            "dropped": lambda content: content.durable,
            "cut": lambda content: content.now(lambda data: data[: len(data) // 2]),
        }
        for names_kind, changes in chosen.items():
            names = dict(self._durable)
            for change in changes:
                change.apply(names)
            for content_kind, content in contents.items():
                kind = f"{names_kind}, unsynced writes {content_kind}"
                yield State(after, kind, _plain(names, content))

    def take(self, call: Call) -> bool:
        """Make a call; whether a cut after it can leave something new."""
        name, words = call.name, call.words
        if name in ("open", "openat", "creat"):
            return self._open(call)
        if name in ("write", "pwrite64", "writev", "pwritev", "pwritev2"):
            return self._write(call)
        if name in ("fsync", "fdatasync"):
            return self._sync(_fd(words[0])[1])
        if name == "lseek":
            number, path = _fd(words[0])
            self._offsets[path, number] = call.result
            return False
        if name in ("ftruncate", "truncate"):
            path = _fd(words[0])[1] if name == "ftruncate" else _text(words[0])
            return self._append(path, 0, int(words[1]))
        if name.startswith("rename"):
            at = name != "rename"
            return self._change(_path(words, at), _path(words[2:] if at else words[1:], at))
        if name in ("unlink", "rmdir", "unlinkat"):
            return self._change(_path(words, name == "unlinkat"), None)
        if name in ("mkdir", "mkdirat"):
            return self._change(None, _path(words, name == "mkdirat"))
        if name == "close":
            return False
        raise NotImplementedError(f"{name}{words}: a recording of it cannot be replayed")

    def _inside(self, path: str) -> str | None:
        path = path.removesuffix(" (deleted)")
        if path == self._folder or path.startswith(self._folder + "/"):
            return path[len(self._folder) :]
        return None

    def _open(self, call: Call) -> bool:
        path = _path(call.words, call.name == "openat")
        flags = call.words[2 if call.name == "openat" else 1]
        inside = self._inside(path)
        if inside is None:
            return False
        self._offsets[path, call.result] = 0
        if "O_CREAT" in flags and inside not in self._now:
            return self._change(None, path, Content())
        content = self._now.get(inside)
        if content is None:
            return False
        if "O_APPEND" in flags:
            self._offsets[path, call.result] = len(content.now())
        return "O_TRUNC" in flags and self._append(path, 0, 0)

    def _write(self, call: Call) -> bool:
        number, path = _fd(call.words[0])
        if self._inside(path) is None:
            return False
        data = b"".join(
            _bytes(text) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', call.words[1])
        )
        data = data[: call.result]
        assert len(data) == call.result, f"the recording cut a string: {path}"
        if call.name.startswith("pwrite"):
            offset = int(call.words[-1])
        else:
            offset = self._offsets.get((path, number), 0)
            self._offsets[path, number] = offset + len(data)
        return self._append(path, offset, data)

    def _append(self, path: str, offset: int, data: bytes | int) -> bool:
        inside = self._inside(path)
        content = None if inside is None else self._now.get(inside)
        if content is None:  # it has no name any more
            return False
        content.written.append((offset, data))
        return True

    def _sync(self, path: str) -> bool:
        inside = self._inside(path)
        if inside is None or inside not in self._now:
            return False
        content = self._now[inside]
        if content is not None:
            content.sync()
            return True
        # The folder's entries, and the folder's own name and its parents'.
        above = {inside[: at.start()] for at in re.finditer("/", inside)} | {inside}
        kept = []
        for change in self._pending:
            if inside in change.folders or (change.old is None and change.new in above):
                change.apply(self._durable)
            else:
                kept.append(change)
        self._pending = kept
        return True

    def _change(self, old: str | None, new: str | None, content: Content | None = None) -> bool:
        before = None if old is None else self._inside(old)
        after = None if new is None else self._inside(new)
        if before is None and after is None:
            return False
        assert (old is None) == (before is None), f"{old} comes from outside"
        assert (new is None) == (after is None), f"{new} goes outside"
        if before is not None and after is not None:
            content = self._now[before]
        change = Change(before, after, content)
        change.apply(self._now)
        self._pending.append(change)
        return True


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """What lies below a folder, by path; None of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def record(command: Sequence[str], folder: Path, **options: object) -> list[Call]:
    """Run a command under strace; its calls that change what lies below the folder.

    Args:
        command: must succeed.
        folder: absolute, without links.
        options: of `subprocess.run`.
    """
    log = folder.parent / f"{folder.name}.strace"
    traced = ["strace", "-f", "-qq", "-y", "-xx", "-s", "100000000", "-o", str(log)]
    subprocess.run([*traced, "-e", f"trace={WATCHED}", *command], check=True, **options)  # type: ignore[call-overload]
    calls = list(parse(log, folder))
    log.unlink()
    return calls


def parse(log: Path, folder: Path) -> Iterator[Call]:
    """The successful calls of a log that name the folder, in the order in which they ended."""
    begun: dict[str, str] = {}
    hexed = "".join(f"\\x{byte:02x}" for byte in str(folder).encode())
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            thread, rest = _LINE.match(line.rstrip("\n")).groups()  # type: ignore[union-attr]
            if rest.endswith("<unfinished ...>"):
                begun[thread] = rest.removesuffix("<unfinished ...>").rstrip()
                continue
            if rest.startswith("<... "):
                rest = begun.pop(thread) + rest.partition(" resumed>")[2].lstrip()
            if hexed not in rest and str(folder) not in rest:
                continue
            if (found := _CALL.match(rest)) is None:
                continue
            name, words, result = found.groups()
            number = int(result, 0)
            if number < 0:
                continue
            if name == "mmap":
                mapped = "PROT_WRITE" in words and "MAP_SHARED" in words
                assert not mapped, f"a recorded program writes through memory: {words}"
                continue
            yield Call(name, _split(words), number)


def _split(words: str) -> tuple[str, ...]:
    """Arguments at the commas that stand outside of quotes, brackets and file names."""
    parts, depth, quoted, start = [], 0, False, 0
    for at, sign in enumerate(words):
        if sign == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif sign in "[{<":
            depth += 1
        elif sign in "]}>":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(words[start:at].strip())
            start = at + 1
    return (*parts, words[start:].strip())


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(word: str) -> str:
    return _bytes(word.strip('"')).decode()


def _path(words: Sequence[str], at: bool) -> str:
    """The path that a call names first, `at` a folder or by itself."""
    if not at:
        return _text(words[0])
    path = _text(words[1])
    return path if path.startswith("/") else f"{_fd(words[0])[1]}/{path}"


def _fd(word: str) -> tuple[int, str]:
    """Number and path of `3</path>`."""
    number, path = _FD.match(word).groups()  # type: ignore[union-attr]
    path = _bytes(path).decode() if path.startswith("\\x") else path
    return -1 if number == "AT_FDCWD" else int(number), path


def _plain(names: Names, content: Callable[[Content], bytes]) -> dict[str, bytes | None]:
    return {
        name[1:]: None if held is None else content(held) for name, held in names.items() if name
    }
