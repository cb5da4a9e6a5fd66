"""Lists images: folders and patterns -> file names in a fixed order, with no other package."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recame.data.file_part import exists, why_missing
from recame.data.image_table import USUAL, TableColumns, table_rows
from recame.errors import DataError
from recame.names import by_number, counted, printable

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".webp", ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k"),
    }
)

#: Kinds of images, in words.
KINDS = "PNG, JPEG, BMP, TIFF, WebP, JPEG 2000, PBM, PGM and PPM"

#: Folders at the top of a drive that belong to the system and cannot be listed.
_OF_THE_SYSTEM = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})


#: Suffixes of files that often lie beside images and are not images.
_BESIDE = frozenset(
    {
        *(".txt", ".md", ".log", ".html", ".pdf", ".ini", ".db", ".lnk", ".toml"),
        *(".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".parquet", ".pq", ".xlsx", ".xls"),
        *(".md5", ".sha256", ".py", ".part", ".sqlite", ".sqlite-wal", ".sqlite-shm"),
    }
)
#: How many folders or files a message names.
_NAMED = 5
#: Files that mark a folder as a run or a bundle of recame: pictures in it are results, not data.
_OF_RECAME = ("run.json", "bundle.json")


class Unused:
    """Files in folders of images that were not used as images.

    Attributes:
        own: runs and bundles of recame that were left out, relative, with forward slashes.
    """

    def __init__(self) -> None:
        self.own: list[str] = []
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._own_images: list[str] = []

    def add_own(self, name: str, folder: str) -> None:
        """Note a run or a bundle, by its name and its path."""
        self.own.append(name)
        if any(is_image_name(file) for _, _, files in os.walk(folder) for file in files):
            self._own_images.append(name)

    def add(self, name: str) -> None:
        """Note a file, by its path."""
        last = name.replace(os.sep, "/").rpartition("/")[2]
        if last.startswith("._") or last == ".DS_Store":  # macOS leaves them everywhere
            return
        suffix = os.path.splitext(last)[1].lower() or "without a suffix"  # noqa: PTH122
        kind = f"hidden {suffix}" if last.startswith(".") else suffix
        self._counts[kind] += 1
        self._first[kind] = min(self._first.get(kind, name), name)

    def __len__(self) -> int:
        """Number of files."""
        return self._counts.total()

    @property
    def maybe_images(self) -> int:
        """How many of them may be images: all but tables, notes and similar files."""
        return sum(count for kind, count in self._counts.items() if kind not in _BESIDE)

    def told(self, lead: str = "") -> str:
        """The number of files of each kind with an example; possible images come first."""
        if not self._counts:
            return ""
        order = sorted(self._counts, key=lambda kind: (kind in _BESIDE, -self._counts[kind], kind))
        shown = [
            f"{self._counts[kind]:,} {kind} ({printable(self._first[kind])})" for kind in order
        ]
        more = f" and {len(shown) - _NAMED} other kinds" if len(shown) > _NAMED else ""
        return f"{lead}{', '.join(shown[:_NAMED])}{more}. "

    def tell(self, where: object) -> None:
        """Warn if some may be images, and of images in runs and bundles."""
        if own := sorted(self._own_images):
            warnings.warn(
                f"{counted(len(own), 'folder')} in {printable(str(where))} "
                f"{by_number(len(own), 'is a run or a bundle', 'are runs or bundles')} of recame "
                f"({', '.join(map(printable, own[:_NAMED]))}{', ...' * (len(own) > _NAMED)}: "
                f"{' or '.join(_OF_RECAME)} lies there), so the pictures in "
                f"{by_number(len(own), 'it', 'them')} are left out. If they are data, move them to "
                "a folder of their own.",
                stacklevel=4,
            )
        if self.maybe_images:
            warnings.warn(
                f"{counted(len(self), 'file')} in {printable(str(where))} "
                f"{by_number(len(self), 'is', 'are')} not used, since "
                f"{by_number(len(self), 'its name does', 'their names do')} not end like {KINDS} "
                f"files: {self.told()}Convert images to use them.",
                stacklevel=4,
            )


def list_images(sources: Sequence[str | Path]) -> list[Path]:
    """Expand files, folders (with all below them), tables and glob patterns to image files.

    A file that is named directly is kept whatever its suffix, and so is a part of a file: a page
    (`file.tif#2`) or a box (`file.png#xywh=10,20,30,40`). A file in a folder means its first page.
    A table that is named directly, `.csv` or `.parquet`, names images, see `table_rows`.

    Returns:
        Paths as given (relative paths stay relative), sorted, each once; if there is only one
        table, in its order.

    Raises:
        DataError: a source does not exist or matches nothing, or there is no image.
    """
    return [Path(name) for name in list_image_names(sources)]


class ListedImages(NamedTuple):
    """Images to predict, with their rows in tables.

    Attributes:
        paths: paths as given, in order.
        columns: the further columns of all tables among the sources.
        told: path -> the image's name in its table and its cells of these columns; only for images
            that a table names.
    """

    paths: list[str]
    columns: list[str]
    told: dict[str, tuple[str, list[str]]]


def list_image_names(sources: Sequence[str | Path], columns: TableColumns = USUAL) -> list[str]:
    """`list_images` as texts, in a tenth of the memory: about 15 MB for 100,000 files.

    Args:
        sources: files, folders, tables and patterns.
        columns: names of the tables' columns.

    Raises:
        DataError: as for `list_images`, or a table cannot be used.
    """
    return list_with_columns(sources, columns).paths


def list_with_columns(sources: Sequence[str | Path], columns: TableColumns = USUAL) -> ListedImages:
    """`list_image_names` with the cells of tables; the first row of each image counts.

    Args:
        sources: files, folders, tables and patterns.
        columns: names of the tables' columns.

    Raises:
        DataError: as for `list_images`, or a table cannot be used.
    """
    found: dict[str, None] = {}  # in the order of a table
    unused, further, told = Unused(), dict[str, int](), dict[str, tuple[str, list[str]]]()
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found.update(dict.fromkeys(_below(path, unused)))
        elif is_table(path) and path.is_file():
            rows = table_rows(path, columns)
            found.update(dict.fromkeys(rows.paths))
            places = [further.setdefault(name, len(further)) for name in rows.columns]
            plain = places == list(range(len(further)))
            for where, name, cells in zip(rows.paths, rows.names, rows.cells, strict=True):
                own = cells
                if not plain:
                    at = dict(zip(places, cells, strict=True))
                    own = [at.get(n, "") for n in range(len(further))]
                _note(told, where, (name, own), path)
        elif path.exists() or exists(path):
            found[str(path)] = None
        else:
            _match(source, found, unused)
    if not found:
        raise DataError(
            f"No images in {', '.join(map(str, sources)) or 'an empty list'}: looked for files "
            f"ending in {', '.join(sorted(IMAGE_SUFFIXES))}. "
            f"{unused.told('There are other files: ')}Give image files or another folder."
        )
    unused.tell(", ".join(map(str, sources)))
    for _, cells in told.values():
        cells += [""] * (len(further) - len(cells))  # of columns that a later table has
    if len(sources) == 1:
        ordered = list(found) if is_table(sources[0]) else sorted(found, key=_by_parts)
        return ListedImages(ordered, list(further), told)
    names = sorted(found, key=_by_parts)
    # Two sources may name one file in two ways.
    here = str(Path.cwd())
    # A name that a table knows goes first, so that its cells are kept.
    whole: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name not in told):
        whole.setdefault(os.path.join(here, name), name)  # noqa: PTH118 - text, not paths
    ordered = [whole[key] for key in sorted(whole, key=_by_parts)]
    said: dict[str, tuple[str, list[str]]] = {}
    for name, facts in told.items():  # under the name that stays
        _note(said, whole[os.path.join(here, name)], facts, name)  # noqa: PTH118
    return ListedImages(ordered, list(further), said)


def _note(
    told: dict[str, tuple[str, list[str]]], where: str, facts: tuple[str, list[str]], source: object
) -> None:
    """Keep the cells of an image's row; a further row of the image must have the same cells.

    Raises:
        DataError: two rows of one image differ.
    """
    before = told.setdefault(where, facts)
    width = min(len(before[1]), len(facts[1]))
    differing = [
        (a, b) for a, b in zip(before[1][:width], facts[1][:width], strict=True) if a != b and b
    ]
    if differing:
        first, second = differing[0]
        raise DataError(
            f"{printable(str(source))}: {printable(where)} is named twice, once with {first!r} and "
            f"once with {second!r}, and it is unclear which is right: remove one of the rows."
        )


def _match(pattern: str | Path, found: dict[str, None], unused: Unused) -> None:
    """Note the images that match a pattern."""
    # Path.glob takes no absolute pattern.
    matches = [Path(m) for m in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207
    if not matches:
        why = why_missing(Path(pattern))
        if why == why_missing(""):
            why = "there is no such file or folder, and no file matches it as a pattern"
        raise DataError(f"No image at {pattern}: {why}. Check the path.")
    for match in (m for m in matches if m.is_file()):
        if is_image_name(match.name):
            found[str(match)] = None
        else:
            unused.add(str(match))
    for folder in (m for m in matches if m.is_dir()):
        found.update(dict.fromkeys(_below(folder, unused)))


def is_table(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a table of images: `.csv`, `.parquet` or `.pq`."""
    return os.fspath(name).lower().endswith((".csv", ".parquet", ".pq"))


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: not hidden, with an image's suffix."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def walk_images(folder: Path, unused: Unused | None = None) -> Iterator[str]:
    """Image files below a folder, relative, with forward slashes; links are followed once.

    Hidden folders are skipped, and so are runs and bundles of recame below the folder.

    Args:
        folder: the folder.
        unused: notes the other files, and the runs and bundles.

    Raises:
        DataError: a folder below cannot be listed.
    """
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, onerror=_not_listed, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(where).relative_to(folder).as_posix()
        if inside != "." and not set(_OF_RECAME).isdisjoint(files):
            if unused is not None:
                unused.add_own(inside, where)
            folders.clear()
            continue
        prefix = "" if inside == "." else f"{inside}/"
        for name in files:
            if is_image_name(name):
                yield f"{prefix}{name}"
            elif unused is not None:
                unused.add(f"{prefix}{name}")


def _not_listed(error: OSError) -> None:
    """Refuse a folder that `os.walk` would skip silently."""
    if os.path.basename(str(error.filename)) not in _OF_THE_SYSTEM:  # noqa: PTH119 - text
        raise DataError(
            f"{error.filename} cannot be listed ({error.strerror}), so the images in it would be "
            "missing. Check its permissions and whether its drive is mounted, or give the other "
            "folders one by one."
        ) from error


def _below(folder: Path, unused: Unused) -> Iterator[str]:
    prefix = "" if str(folder) == "." else f"{str(folder).rstrip(os.sep)}{os.sep}"
    return (f"{prefix}{name}".replace("/", os.sep) for name in walk_images(folder, unused))


def _by_parts(name: str) -> str:
    """Sort key under which a folder's files stand together, as paths sort."""
    return name.replace(os.sep, "\0")
