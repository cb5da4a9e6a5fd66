"""Folders and tables of images -> one table: image, path, label, split and further columns."""

from __future__ import annotations

import hashlib
import io
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from recame.config import DataConfig
from recame.data.file_part import exists
from recame.data.image_folder import Labels, read_folder, tables_beside
from recame.data.image_table import USUAL, box_columns_of, boxed_names
from recame.data.split_names import usual_names
from recame.data.table_text import TableText, read_table_text
from recame.errors import CheckpointError, DataError
from recame.files import open_regular
from recame.names import by_number, counted, escaped, printable, quoted

#: How many file names with letters beyond ASCII are looked for.
_NAMES_TRIED = 100
_OWN_COLUMNS = ("image", "path", "label", "split", "target", "row")
#: The table of a run's images; its column `path` tells where they lie.
_RUNS_OWN = "manifest.csv"
_BOX_ADVICE = (
    "Name them with --set data.box_columns=[LEFT,TOP,WIDTH,HEIGHT], or, if the table has no boxes, "
    "use --set data.box_columns=null"
)


@dataclass(frozen=True)
class ManifestColumns:
    """Names of the columns of a table that recame uses.

    Attributes:
        image: column of paths.
        label: column of classes.
        split: column of splits.
        box: columns of boxes, see `TableColumns`.
        names: further columns of names, such as products and lots: read as text, even digits.
        encoding: text encoding of a CSV file, or `auto`, see `read_table_text`.
    """

    image: str = "image"
    label: str = "label"
    split: str = "split"
    box: tuple[str, str, str, str] | None = USUAL.box
    names: tuple[str, ...] = ()
    encoding: str = "auto"

    @classmethod
    def of(cls, config: DataConfig) -> ManifestColumns:
        """The names in the settings."""
        names = tuple(name for name in (config.product_column, config.group_by) if name is not None)
        image, label, split = config.image_column, config.label_column, config.split_column
        return cls(image, label, split, config.box_columns, names, config.encoding)


def read_manifest(
    source: Path,
    columns: ManifestColumns = ManifestColumns(),
    *,
    min_classes: int = 2,
    labels: Labels = "required",
    pages: Literal["first", "all"] = "first",
) -> pd.DataFrame:
    """Read a folder per class, a folder of `train/val/test` with class folders, or a table.

    Labels may be missing: with `labels="optional"` images that have a label keep it; with "ignored"
    folders are no classes, however deep, and a table needs no label column.

    Labels are text as written ("01" stays "01"). Files with an image's suffix are listed even if
    they cannot be decoded; hidden and other files are not, nor what lies in runs and bundles of
    recame. Usual names of splits ("valid", "Testing", see `usual_names`) become `train`, `val` and
    `test`; other names are kept.

    A folder `train` alone, or beside a folder with a usual name of a split, holds a split; without
    it, folders are classes. Folders without images do not count.

    Args:
        source: a folder, or a `.csv` or `.parquet` table with image paths, absolute or relative
            to the table's folder; a run's own `manifest.csv` names them in `path`. `file.tif#2` is
            the second page of a TIFF file, unless a file has exactly that name. A row with a box
            (columns `x, y, width, height`) means the box with its surroundings, as a separate image
            `file.png#xywh=10,20,30,40`; a row whose four cells are empty means the whole image.
        columns: names of the table's columns.
        min_classes: fewer classes are refused, if labels are required.
        labels: whether images need labels.
        pages: pages of a folder's TIFF files: the first, under the file's name; or each page as an
            image (`file.tif#1` and so on) if there are several. A table names each page itself.

    Returns:
        One row for each image: `image` (the text in the table with the row's box, or the path
        relative to the folder), `path` (absolute), `label` (no such column if no image has one,
        missing if this image has none), `split` (no such column if the source has none), and every
        further column of the table unchanged; a column whose name recame uses becomes
        `manifest_<name>`. Rows of a folder are sorted by path, rows of a table keep their order.

    Raises:
        DataError: the source cannot be used; the message says why and what to do.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"No data at {source}: the path does not exist. Check the spelling.")
    if escaped(place := str(source.absolute())) != place:
        raise DataError(
            f"The path {printable(place)} is not valid UTF-8, so no table can name the images "
            "below it: rename its folders, or give a link with another name."
        )
    folder = source.is_dir()
    table = read_folder(source, labels, pages) if folder else _read_table(source, columns, labels)
    _tell_look_alikes(table, source, columns)
    if labels == "required":
        found = table["label"].unique()
        if len(found) < min_classes:
            raise DataError(
                f"{source} holds only one class ({found[0]!r}), but a classifier needs two. "
                f"{tables_beside(source)}Add a folder or rows of another class, or check "
                "data.label_column."
            )
    elif "label" in table and table["label"].isna().all():
        table = table.drop(columns="label")
    return table


def read_recorded_manifest(
    path: Path, product_column: str, known: Sequence[str] | None = None
) -> pd.DataFrame:
    """The manifest that a run recorded, so that no image changes its split.

    Args:
        path: a run's `manifest.csv`.
        product_column: read as text, like labels and splits: a class may be called "NA", and a
            product "0012".
        known: the allowed SHA-256 hashes; None for runs of versions that recorded none.

    Raises:
        CheckpointError: the file is missing or damaged, or was edited after the run wrote it.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing, so the run no longer knows its images: train the run again, or "
            "evaluate it on DATA."
        )
    texts = dict.fromkeys(("image", "path", "label", "split", product_column), str)
    try:
        content = path.read_bytes()
        if known is not None and hashlib.sha256(content).hexdigest() not in known:
            raise ValueError(
                "it has changed since the run wrote it, as its hash differs from that in run.json: "
                "a row may be missing or changed"
            )
        if not content.endswith(b"\n"):  # every row that a run writes ends so
            raise ValueError("it is empty or cut off")
        how: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
        table = pd.read_csv(io.BytesIO(content), dtype=texts, **how)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows have more cells than its header")
        if floats := list(table.select_dtypes("float")):
            text = pd.read_csv(io.BytesIO(content), usecols=floats, dtype=str, **how)
            table[floats] = pd.DataFrame({n: _as_written(table[n], text[n]) for n in floats})
    except (OSError, ValueError, OverflowError, pd.errors.ParserError) as error:
        raise CheckpointError(
            f"{path} cannot be used ({error}), so the run no longer knows its images: it was "
            "edited or damaged. Restore it from a copy of the run, train the run again, or "
            "evaluate the run on DATA."
        ) from error
    if missing := {"image", "path", "label", "split"}.difference(table):
        raise CheckpointError(
            f"{path} has no column {', '.join(sorted(missing))}, so the run no longer knows its "
            "images: it was edited or damaged. Train the run again, or evaluate it on DATA."
        )
    return _plain_columns(table)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, blanks or Unicode form.

    Examples:
        >>> look_alikes(["Scratch", "scratch ", "dent", "d e n t", "hole"])
        [['Scratch', 'scratch '], ['d e n t', 'dent']]
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        key = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(unicodedata.normalize("NFKC", key), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _tell_look_alikes(table: pd.DataFrame, source: Path, columns: ManifestColumns) -> None:
    """Warn of names of classes, splits and others that differ only by a typing slip."""
    for column in ("label", "split", *columns.names):
        if column not in table:
            continue
        counts = table[column].dropna().astype(str).value_counts()
        for group in look_alikes(counts.index):
            told = " and ".join(f"{name!r} ({counted(int(counts[name]))})" for name in group)
            warnings.warn(
                f"{source}: {told} differ only in case, blanks or Unicode form, and count as "
                f"{len(group)} different values of {column!r}. If they mean the same, give them "
                "the same name.",
                stacklevel=3,
            )


def _read_table(source: Path, columns: ManifestColumns, labels: Labels) -> pd.DataFrame:
    if source.suffix.lower() == ".csv":
        table = _read_csv(source, columns)
    elif source.suffix.lower() in {".parquet", ".pq"}:
        table = _read_parquet(source)
    else:
        raise DataError(
            f"{source} is neither a folder nor a table, so it names no images: give a folder, or a "
            "table ending in .csv or .parquet."
        )
    table = _plain_columns(table)
    _check_columns(table, source, columns, labels)
    boxes = box_columns_of(
        list(map(str, table)), columns.box, source, _BOX_ADVICE, declared=columns.box != USUAL.box
    )
    if table.empty:
        raise DataError(
            f"{source} has a header but no rows, so there is nothing to learn from: add a row for "
            "each image."
        )
    if columns.split in table and _is_empty(table[columns.split]).all():
        table = table.drop(columns=columns.split)  # which says nothing of any image
    renamed = {columns.image: "image"}
    if labels != "ignored" and columns.label in table:
        renamed[columns.label] = "label"
    if columns.split in table:
        renamed[columns.split] = "split"
    clashing = {c: f"manifest_{c}" for c in table if c in _OWN_COLUMNS and c not in renamed}
    table = table.rename(columns={**clashing, **renamed}).reset_index(drop=True)
    _check_filled(table["image"], source, columns.image)
    table["image"] = table["image"].astype(str)
    if boxes is not None:
        cells = list(zip(*(table[name].tolist() for name in boxes), strict=True))
        table["image"] = boxed_names(table["image"].tolist(), cells, boxes, source)
        for name in boxes:
            numbers = pd.to_numeric(table[name])
            whole = _as_written(numbers, table[name]) is not numbers
            table[name] = numbers.astype("Int64") if whole else numbers
    if "label" in table:
        if labels == "required":
            _check_filled(table["label"], source, columns.label)
        table["label"] = table["label"].astype(str).mask(_is_empty(table["label"]))
    if "split" in table:
        _check_filled(table["split"], source, columns.split)
        names = table["split"].astype(str)
        table["split"] = names.map(usual_names(names.unique()))
    table.insert(1, "path", _paths(table, source.absolute()))
    table = table.drop(columns="manifest_path") if _of_run(table, source) else table
    front = [c for c in ("image", "path", "label", "split") if c in table]
    return table[front + [c for c in table if c not in front]]


def _of_run(table: pd.DataFrame, source: Path) -> bool:
    """Whether this is the table that a run recorded; its images may lie elsewhere."""
    beside = (source.parent / "run.json").is_file()
    return source.name == _RUNS_OWN and beside and "manifest_path" in table


def _paths(table: pd.DataFrame, source: Path) -> list[str]:
    """Where each image lies."""
    if _of_run(table, source):
        return list(table["manifest_path"].astype(str))
    slashed = table["image"].str.replace("\\", "/", regex=False)
    return [str(source.parent / image) for image in slashed]


def _read_parquet(source: Path) -> pd.DataFrame:
    try:
        from pyarrow import parquet, types

        with open_regular(source) as stream:
            table = pd.read_parquet(stream)
            whole = [f.name for f in parquet.read_schema(stream) if types.is_integer(f.type)]
            gaps = [name for name in whole if name in table and table[name].isna().any()]
            exact = parquet.read_table(stream, columns=gaps).to_pydict() if gaps else {}
        for name, numbers in exact.items():  # see `_as_written`
            table[name] = [None if number is None else str(number) for number in numbers]
        for name in table.select_dtypes(exclude="number"):
            list(table[name])  # texts that are none are told now
    except Exception as error:  # a damaged file can break a reader anywhere
        raise DataError(
            f"{source} cannot be read as Parquet ({error}): it is damaged or of another kind. "
            "Write it again."
        ) from error
    return table


def _read_csv(source: Path, columns: ManifestColumns) -> pd.DataFrame:
    boxes = set(columns.box or ())
    wanted = {columns.image, columns.label, columns.split, *boxes, *columns.names}
    taken = read_table_text(source, wanted, columns.encoding)
    how: dict[str, Any] = {"sep": taken.separator}

    def read(**more: Any) -> pd.DataFrame:
        found: pd.DataFrame = pd.read_csv(io.StringIO(taken.text), **how, **more)
        return found

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of empty cells left out
            text = read(dtype=str, keep_default_na=False)
            if not isinstance(text.index, pd.RangeIndex):  # first cells taken for a row's name
                how["index_col"] = _check_surplus(source, text, taken.separator)
                text = read(dtype=str, keep_default_na=False)
            table = read(low_memory=False)
    except (ValueError, OverflowError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(
            f"{source} cannot be read as a table ({error}): correct it, or save it again as CSV."
        ) from error
    if taken.guessed is not None:
        _tell_code_page(source, taken, text, columns)
    own = {columns.image, columns.label, columns.split} | (boxes if boxes <= set(text) else set())
    # A class may be called "NA" and a lot "0012": neither is a missing value or a number. A box
    # of NaN is half filled rather than none.
    for name in text:
        if name in own:
            table[name] = text[name].str.strip()
        elif name in columns.names:
            table[name] = text[name].str.strip().where(text[name].str.strip() != "")
        elif text[name].str.match(r"0\d").any():
            table[name] = text[name]
        else:
            table[name] = _as_written(table[name], text[name])
    return table


def _check_surplus(source: Path, text: pd.DataFrame, separator: str) -> Literal[False]:
    """Let rows end with a separator; refuse cells beyond the header.

    Returns:
        pandas' `index_col` for reading such a table.

    Raises:
        DataError: a row holds more than the header names.
    """
    surplus = text.index.nlevels
    if (text.iloc[:, -surplus:] == "").all(axis=None):
        return False
    raise DataError(
        f"{source} has rows of {len(text.columns) + surplus} cells, but its header names "
        f"{len(text.columns)} ({', '.join(map(quoted, text.columns[:8]))}), so it is unclear which "
        f"cell belongs to which column: name every column, and put texts with {separator!r} in "
        "quotes."
    )


def _as_written(numbers: pd.Series, text: pd.Series) -> pd.Series:
    """Numbers; whole numbers with gaps as text, since pandas turns 12 into 12.0 beside a gap."""
    known = numbers.notna()
    if not pd.api.types.is_float_dtype(numbers) or known.all() or not known.any():
        return numbers
    kept = text.astype(str).str.strip().where(known)
    return kept if kept[known].str.fullmatch(r"[+-]?\d+").all() else numbers


def _tell_code_page(
    source: Path, taken: TableText, text: pd.DataFrame, columns: ManifestColumns
) -> None:
    """Warn of the guessed code page; file names in it must lead to files."""
    declare = "declare it with --set data.encoding=NAME (cp1250, cp1251, cp932 ...)"
    if columns.image in text:
        named = text[columns.image].str.strip()
        base = source.parent.absolute()
        for name in named[~named.map(str.isascii)].head(_NAMES_TRIED):
            file = base / name.replace("\\", "/")
            if not exists(file):
                raise DataError(
                    f"{source} is not UTF-8, and read as {taken.guessed} it names {name!r}, which "
                    f"does not exist: if it has another encoding, {declare}, or save it as UTF-8."
                )
    shown = next(line for line in taken.text.splitlines() if not line.isascii())[:60]
    warnings.warn(
        f"{source} is not UTF-8: it was read as {taken.guessed} (Western Europe), separated by "
        f"{taken.separator!r}, for example {shown!r}. If that is wrong, {declare}.",
        stacklevel=5,
    )


def _plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Turn values that no number column holds (lists, 20 digits) to text, categories to values."""
    for name in table:
        values = table[name]
        if isinstance(values.dtype, pd.CategoricalDtype):
            table[name] = values.astype(values.cat.categories.dtype)
        elif values.dtype == object:
            table[name] = values.astype(str).where(values.notna())
    return table


def _check_columns(
    table: pd.DataFrame, source: Path, columns: ManifestColumns, labels: Labels
) -> None:
    named = labels == "optional" and columns.label != ManifestColumns.label
    for setting, name, wanted in (
        ("data.image_column", columns.image, True),
        ("data.label_column", columns.label, labels == "required" or named),
        ("data.split_column", columns.split, columns.split != ManifestColumns.split),
    ):
        if wanted and name not in table:
            raise DataError(
                f"{source} has no column {name!r}; its columns are "
                f"{', '.join(map(str, table.columns))}. Name the right column: "
                f"--set {setting}=NAME"
            )


def _is_empty(values: pd.Series) -> pd.Series:
    return values.isna() | (values.astype(str).str.strip() == "")


def _check_filled(values: pd.Series, source: Path, name: str) -> None:
    empty = _is_empty(values).to_numpy().nonzero()[0]
    if len(empty):
        first, verb = ", ".join(map(str, empty[:5] + 1)), by_number(len(empty), "has", "have")
        raise DataError(
            f"{source}: {counted(len(empty), 'row')} {verb} no {name!r} (row {first}"
            f"{', ...' if len(empty) > 5 else ''} below the header), and a guess would teach "
            "something wrong. Fill them in or remove the rows."
        )
