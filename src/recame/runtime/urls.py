"""Images at URLs (`s3://` and everything else that fsspec supports), handled like files.

`file://` means the plain path. fsspec is imported only if there is a URL.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from recame.contracts import AnyPath
from recame.data.decode import Reader
from recame.data.file_part import FilePart, readings
from recame.data.image_file import FileContent, checked_content, readable
from recame.data.image_table import USUAL, TableColumns
from recame.data.listing import (
    KINDS,
    ListedImages,
    Unused,
    is_image_name,
    is_table,
    list_with_columns,
)
from recame.data.paged_file import content_sha256
from recame.errors import ConfigError, DataError, MissingDependencyError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: Bytes read at once, so that reading a header does not fetch the whole file.
_BLOCK_BYTES = 2**16


def is_url(name: object) -> bool:
    """Whether a name is a URL of something that is not on this machine's disks.

    Examples:
        >>> is_url("s3://lots/7.png"), is_url("file:///lots/7.png"), is_url("c:/lots/7.png")
        (True, False, False)
    """
    text = str(name)
    return _URL.match(text) is not None and not text.startswith("file://")


def plain_path(name: AnyPath) -> Path | str:
    """The path of a `file://` URL; any other name unchanged."""
    return name.removeprefix("file://") if isinstance(name, str) else Path(name)


def list_names(sources: Sequence[Path | str], columns: TableColumns = USUAL) -> ListedImages:
    """List the image files of sources, which may be URLs: local files first, each kind sorted.

    Args:
        sources: as for `list_image_names`, and URLs.
        columns: names of the local tables' columns.

    Raises:
        DataError: a source does not exist, is a table at a URL, or there is no image.
        ConfigError: a URL's scheme is unknown, or its package is not installed.
    """
    local = [plain_path(source) for source in sources if not is_url(source)]
    urls = [str(source) for source in sources if is_url(source)]
    for url in filter(is_table, urls):
        raise DataError(
            f"{url} is a table at a URL, but tables are read only from this machine's disks: copy "
            "it to this machine, or give the folder of the images."
        )
    here = list_with_columns(local, columns) if local or not urls else ListedImages([], [], {})
    there = sorted({name for url in urls for name in _below(url)}, key=_by_parts)
    return here._replace(paths=here.paths + there)


def _by_parts(url: str) -> str:
    """Sort key, in the same order as paths."""
    return url.replace("/", "\0")


def _below(url: str) -> Iterator[str]:
    fs, path = place_of(url)
    with reached(url, "be listed"):
        if any(fs.isfile(file) for file, _ in readings(path)):
            yield url
            return
        found = fs.glob(path) if any(sign in path for sign in "*?[") else fs.find(path)
    unused, any_image = Unused(), False
    for name in found:
        last = name.removeprefix(path).strip("/").split("/")
        if any(part.startswith(".") for part in last[:-1]):
            continue
        if is_image_name(name.rpartition("/")[2]):
            any_image = True
            yield fs.unstrip_protocol(name)
        else:
            unused.add(name)
    if not any_image:
        raise DataError(
            f"No images at {url}: looked for {KINDS}. {unused.told('There are other files: ')}"
            "Check the URL."
        )
    unused.tell(url)


class UrlReader(Reader):
    """Reads images at URLs too: the header first, no files that are too large, with retries."""

    def whole(self, image: Path | str) -> AbstractContextManager[FileContent]:
        """An image's file; its header is checked before the rest is read."""
        return _whole_url(image, self.max_pixels) if is_url(image) else super().whole(image)

    def content(self, image: Path | str) -> str | None:
        """Checksum of an image's file; None if it cannot be read."""
        return content(str(image))


def content(name: str) -> str | None:
    """Checksum of the present content of a file or URL; None if it cannot be read."""
    try:
        if not is_url(name):
            return content_sha256(Path(name))
        with _as_system_errors():
            stream, _ = _open(name)
            with stream:
                digest = hashlib.sha256()
                while block := stream.read(2**22):
                    digest.update(block)
                return digest.hexdigest()
    except OSError:
        return None


@contextmanager
def _whole_url(url: Path | str, max_pixels: int) -> Iterator[FileContent]:
    with readable(), _as_system_errors():
        stream, part = _open(str(url))
    with stream:
        checked: Any = _Stream(stream)
        yield from checked_content(checked, part, stream.size, max_pixels)


class _Stream:
    """A remote file; every failure is raised as an OSError, which is tried again."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        with _as_system_errors():
            return bytes(self._stream.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open(url: str) -> tuple[Any, FilePart]:
    fs, path = place_of(url)
    words = {"mode": "rb", "block_size": _BLOCK_BYTES, "cache_type": "readahead"}
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    for file, part in readings(path):
        try:
            return fs.open(file, **words), part
        except FileNotFoundError as error:
            missing = error
    raise missing


def place_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        MissingDependencyError: fsspec is not installed.
        ConfigError: the URL's scheme is unknown, or its package is not installed.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise MissingDependencyError("fsspec", "cluster", f"to use {url}") from error
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
        name = packages.get(url.partition("://")[0])
        told = f"Install it with: pip install {name}" if name else str(error)
        raise ConfigError(f"{url} needs a package that is not installed. {told}") from error
    except ValueError as error:
        raise ConfigError(f"{url} cannot be read: {error}") from error
    return fs, str(path)


@contextmanager
def _as_system_errors() -> Iterator[None]:
    """Turn every error of a store's client into an OSError, which is tried again."""
    try:
        yield
    except (OSError, ConfigError, MissingDependencyError):
        raise
    except Exception as error:  # each client has its own error types
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


@contextmanager
def reached(url: str, what: str, advice: str = "") -> Iterator[None]:
    """Turn failures at a URL into an error that says what could not be done.

    Raises:
        DataError: the store, its client or the network failed.
    """
    try:
        with _as_system_errors():
            yield
    except OSError as error:
        raise DataError(
            f"{url} cannot {what} ({error.strerror or error}): check the address, the network and "
            f"the credentials.{advice}"
        ) from error
