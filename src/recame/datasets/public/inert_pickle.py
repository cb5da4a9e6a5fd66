"""Published pickle files -> plain values and arrays, without running anything they name.

`pickle.load` calls whatever a file names, and `numpy`'s and `pandas`' own reconstructors trust
the sizes and types they are told. Here every name maps to a small stand-in of this module that
only keeps what it is given; arrays are built from their bytes by a checked type and shape; any
other name is refused before anything of it is imported.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Self

import numpy as np

from recame.contracts import Array
from recame.errors import DataError

_PLAIN_TYPE = re.compile(r"[bBiuf][1248]|[US]\d{1,4}")


class PickledArray:
    """A numpy array of a pickle; `array` holds it when the file has been read.

    An element of an object array that is an array itself stays a `PickledArray`.
    """

    __slots__ = ("array",)

    array: Array

    def __new__(cls, *_: Any) -> Self:
        """An empty array until its state is read."""
        made = super().__new__(cls)
        made.array = np.empty(0)
        return made

    def __setstate__(self, state: Any) -> None:
        """Take numpy's (version, shape, dtype, is_fortran, bytes or list)."""
        shape, dtype, is_fortran, content = state[-4:]
        if not isinstance(dtype, PickledType):
            raise TypeError("an array without a type")
        if isinstance(content, list):
            flat = np.fromiter(content, dtype=object, count=len(content))
        else:
            flat = np.frombuffer(_as_bytes(content), dtype.plain())
        self.array = flat.reshape(shape, order="F" if is_fortran else "C")


class PickledType:
    """A numpy dtype of a pickle."""

    code: str
    order: str

    def __new__(cls, code: Any = "", *_: Any) -> Self:
        """Keep the code ("u1", "U4", "O8")."""
        made = super().__new__(cls)
        made.code, made.order = as_text(code), "|"
        return made

    def __setstate__(self, state: Any) -> None:
        """Take numpy's (version, byte order, ...); sizes and flags follow from the code."""
        self.order = as_text(state[1])

    def plain(self) -> np.dtype[Any]:
        """The dtype, if values of it are plain bytes.

        Raises:
            TypeError: it is another one.
        """
        if self.order not in ("|", "<", ">", "=") or not _PLAIN_TYPE.fullmatch(self.code):
            raise TypeError(f"values of type {self.order}{self.code}")
        return np.dtype(self.order.replace("|", "=") + self.code)


class PickledObject:
    """Any other object: what it was made with, and its state."""

    args: Any
    state: Any

    def __new__(cls, *args: Any) -> Self:
        """Keep the arguments."""
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


def as_text(value: Any) -> str:
    """Text of either Python: its `str` was bytes in Python 2.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, str):
        return value
    raise TypeError(f"{type(value).__name__} where text belongs")


def _as_bytes(value: Any, *_: Any) -> bytes:
    return value if isinstance(value, bytes) else as_text(value).encode("latin1")


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, PickledType):
        raise TypeError("a number without a type")
    return np.frombuffer(_as_bytes(content), dtype.plain(), count=1)[0]


def _reconstructor(*args: Any) -> PickledObject:
    return PickledObject(*args[1:])


_NUMPY_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_NUMPY: dict[str, Any] = {
    "ndarray": PickledArray,
    "dtype": PickledType,
    "_reconstruct": PickledArray,
    "scalar": _scalar,
}
_BUILTIN: dict[tuple[str, str], Any] = {
    # How Python 3 writes bytes by protocol 2.
    ("_codecs", "encode"): _as_bytes,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("__builtin__", "slice"): slice,
    ("builtins", "slice"): slice,
    ("__builtin__", "object"): PickledObject,
    ("builtins", "object"): PickledObject,
}
#: Of a table, in whichever module its version of pandas kept them.
_PANDAS = frozenset(
    {"DataFrame", "BlockManager", "Index", "Int64Index", "RangeIndex", "_new_Index"}
)


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _BUILTIN:
            return _BUILTIN[module_name, global_name]
        if module_name in _NUMPY_MODULES and global_name in _NUMPY:
            return _NUMPY[global_name]
        if module_name.partition(".")[0] == "pandas" and global_name in _PANDAS:
            return PickledObject
        raise DataError(
            f"The file asks for {module_name}.{global_name}, which the published one does not "
            "need, so it may be a different file that runs code when it is read; nothing of it "
            "was run. Take the file from its publisher again."
        )


def read_inert(path: Path) -> Any:
    """Read a pickle by Python 2 or 3 that holds numbers, text, arrays and old pandas tables.

    Text that Python 2 wrote comes back as bytes (see `as_text`), which arrays share unchanged.

    Raises:
        DataError: the file is missing or damaged, or names anything else.
    """
    try:
        with path.open("rb") as stream:
            return _InertUnpickler(stream, encoding="bytes").load()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): check the path and rights.") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged stream can break an unpickler anywhere
        raise DataError(
            f"{path} is no pickle of numbers, text, arrays and tables, or it is damaged "
            f"({type(error).__name__}: {error}). Take it from its publisher again."
        ) from error


def pickled_columns(frame: Any) -> dict[str, Array]:
    """The columns of a table that pandas 0.14 to 1.2 pickled.

    Args:
        frame: what `read_inert` gave.

    Returns:
        Column name -> its N values, in the table's order of columns.

    Raises:
        DataError: it is no such table.
    """
    try:
        state = _by_text(frame.state)
        manager = (state["_data"] if "_data" in state else state["_mgr"]).state
        content = _by_text(_by_text(manager[3])["0.14.1"])
        # An index is made with its class and a dictionary of its data and its name.
        names = [as_text(name) for name in _by_text(content["axes"][0].args[1])["data"].array]
        columns: dict[int, Array] = {}
        for block in content["blocks"]:
            parts = _by_text(block)
            where = parts["mgr_locs"]
            rows = np.arange(len(names))[where if isinstance(where, slice) else where.array]
            columns.update(zip(rows.tolist(), parts["values"].array, strict=True))
        return {name: columns[number] for number, name in enumerate(names)}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"The pickle holds no table as pandas 0.14 to 1.2 wrote it ({error!r}). Take the file "
            "from its publisher, not one that was saved again."
        ) from error


def _by_text(values: Any) -> dict[str, Any]:
    return {as_text(key): value for key, value in values.items()}
