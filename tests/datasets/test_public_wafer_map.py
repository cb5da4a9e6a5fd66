"""WM-811K from small files of exactly the published format, and files that try to run code."""

import os
import pickle
import struct
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.data.manifest import read_manifest
from recame.datasets.public.inert_pickle import PickledArray, pickled_columns, read_inert
from recame.datasets.public.wafer_map import CLASSES, prepare
from recame.datasets.registry import PUBLIC_SETS
from recame.errors import ConfigError, DataError


class Global:
    """A name that a pickle asks for; never imported here."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError


class Call:
    """An object that is made by calling a global."""

    def __init__(self, function, args, state=None):
        self.reduced = (function, args, state)


class New:
    """An instance of a new-style class of Python 2 with its state."""

    def __init__(self, kind, state):
        self.kind, self.state = kind, state


class Python2Pickler(pickle._Pickler):
    """Writes protocol 2 as Python 2 with numpy 1 did: byte strings, old modules."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, stream):
        super().__init__(stream, 2)

    def save_global(self, obj, name=None):
        self.write(f"c{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def save_python2_str(self, obj):
        self.write(b"T" + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_python2_str

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, New):
            return super().save(obj, save_persistent_id)
        self.save(obj.kind)
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        self.memoize(obj)
        self.save(obj.state)
        return self.write(pickle.BUILD)

    def reducer_override(self, obj):
        if isinstance(obj, Global):
            return obj.name
        if isinstance(obj, Call):
            return obj.reduced
        if isinstance(obj, np.dtype):
            size = -1 if obj.kind in "uO" else obj.itemsize
            code = b"O8" if obj.kind == "O" else obj.str[1:].encode()
            flags = 63 if obj.kind == "O" else 0
            state = (3, obj.str[:1].encode(), None, None, None, size, -1, flags)
            return Global("numpy", "dtype"), (code, 0, 1), state
        if isinstance(obj, np.ndarray):
            is_object = obj.dtype.kind == "O"
            content = obj.ravel().tolist() if is_object else obj.tobytes()
            made = (Global("numpy", "ndarray"), (0,), b"b")
            state = (1, obj.shape, obj.dtype, False, content)
            return Global("numpy.core.multiarray", "_reconstruct"), made, state
        return NotImplemented


def objects(values):
    return np.fromiter(values, object, len(values))


def old_index(values):
    state = {b"data": objects(values), b"name": None}
    new_index = Global("pandas.indexes.base", "_new_Index")
    return Call(new_index, (Global("pandas.indexes.base", "Index"), state))


def old_frame(columns):
    """A DataFrame as pandas 0.18 under Python 2 pickled it: one block of floats, one of objects."""
    names = list(columns)
    is_float = [columns[name].dtype.kind == "f" for name in names]
    floats = [n for n, float_ in enumerate(is_float) if float_]
    others = [n for n, float_ in enumerate(is_float) if not float_]
    num_rows = len(columns[names[0]])
    range_state = {b"start": 0, b"stop": num_rows, b"step": 1, b"name": None}
    rows = Call(
        Global("pandas.indexes.base", "_new_Index"),
        (Global("pandas.indexes.range", "RangeIndex"), range_state),
    )
    axes = [old_index([name.encode() for name in names]), rows]
    stacked = np.empty((len(others), num_rows), object)
    for row, n in enumerate(others):
        stacked[row] = columns[names[n]]
    blocks = [
        {
            b"values": np.stack([columns[names[n]] for n in floats]),
            b"mgr_locs": Call(Global("__builtin__", "slice"), (1, 4, 2)),
        },
        {b"values": stacked, b"mgr_locs": np.array(others)},
    ]
    extra = {b"0.14.1": {b"axes": axes, b"blocks": blocks}}
    manager = New(Global("pandas.core.internals", "BlockManager"), (axes, [], [], extra))
    state = {b"_typ": b"dataframe", b"_data": manager, b"_metadata": []}
    return New(Global("pandas.core.frame", "DataFrame"), state)


def text_cell(text):
    return np.array([[text]]) if text else np.empty((0, 0), "<U1")


def write_wafers(path, labels, splits, *, top=3, split_column="trianTestLabel"):
    rng = np.random.default_rng(0)
    count = len(labels)
    maps = [rng.integers(0, top, (6 + n % 5, 8 + n % 3)).astype(np.uint8) for n in range(count)]
    columns = {
        "waferMap": objects(maps),
        "dieSize": np.array([533.0 + 100 * (n % 2) for n in range(count)]),
        "lotName": objects([b"lot%d" % (n // 4) for n in range(count)]),
        "waferIndex": np.array([1.0 + n % 25 for n in range(count)]),
        split_column: objects([text_cell(split) for split in splits]),
        "failureType": objects([text_cell(label) for label in labels]),
    }
    with path.open("wb") as stream:
        Python2Pickler(stream).dump(old_frame(columns))
    return maps


LABELS = [*CLASSES, "", *CLASSES, "", *["none"] * 20]
SPLITS = [*["Training"] * 9, "", *["Test"] * 9, "", *["Training"] * 20]


def test_the_published_format_becomes_a_manifest(tmp_path):
    maps = write_wafers(tmp_path / "LSWMD.pkl", LABELS, SPLITS)
    seen = []
    out = tmp_path / "out"
    manifest = PUBLIC_SETS["wm_811k"].prepare(
        tmp_path, out, on_progress=lambda _, done, all_: seen.append((done, all_))
    )
    table = read_manifest(manifest)
    assert len(table) == 38
    assert seen[-1] == (38, 38)
    assert table["split"].value_counts().to_dict() == {"train": 29, "test": 9}
    assert sorted(table.loc[table["split"] == "test", "label"]) == sorted(CLASSES)
    assert table["source_row"].tolist() == [*range(9), *range(10, 19), *range(20, 40)]
    assert table["product"].tolist()[:3] == ["533 dies", "633 dies", "533 dies"]
    assert table["lot"].tolist()[3:5] == ["lot0", "lot1"]
    assert table["wafer"].tolist()[:2] == [1, 2]
    for path, row in zip(table["path"], table["source_row"], strict=True):
        expected = np.array([0, 127, 255], np.uint8)[maps[row]]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    before = manifest.stat().st_mtime_ns
    assert prepare(tmp_path / "LSWMD.pkl", out) == manifest
    assert manifest.stat().st_mtime_ns == before


def test_val_takes_whole_lots_of_the_training_maps(tmp_path):
    write_wafers(tmp_path / "LSWMD.pkl", LABELS, SPLITS)
    published = pd.read_csv(prepare(tmp_path, tmp_path / "a"))
    with_val = pd.read_csv(prepare(tmp_path, tmp_path / "b", val_fraction=0.3))
    assert (with_val["split"] == "val").sum() >= 4
    train = with_val[with_val["split"] != "test"]
    assert train.groupby("lot")["split"].nunique().max() == 1
    held_out = published["split"] == "test"
    pd.testing.assert_frame_equal(published[held_out], with_val[held_out])
    with pytest.raises(ConfigError, match="val_fraction = 1"):
        prepare(tmp_path, tmp_path / "c", val_fraction=1)
    with pytest.raises(DataError, match="prepared differently"):
        prepare(tmp_path, tmp_path / "b", val_fraction=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["none", "Bullseye"]}, "failureType 'Bullseye'"),
        ({"splits": ["Training", "Extra"]}, "trianTestLabel 'Extra'"),
        ({"labels": ["", ""]}, "no labelled wafer"),
        ({"split_column": "fold"}, "lacks trianTestLabel"),
        ({"top": 9}, "published maps hold 0, 1 and 2"),
    ],
)
def test_other_tables_are_refused(tmp_path, change, message):
    path = tmp_path / "LSWMD.pkl"
    write_wafers(path, **{"labels": ["none", "Loc"], "splits": ["Training", "Test"], **change})
    with pytest.raises(DataError, match=message):
        prepare(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    canary = tmp_path / "canary"
    path = tmp_path / "LSWMD.pkl"
    path.write_bytes(pickle.dumps([Runs(os.system, f"touch {canary}")], protocol))
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.system"):
        prepare(path, tmp_path / "out")
    path.write_bytes(pickle.dumps(Runs(eval, f"open({str(canary)!r}, 'w')"), protocol))
    with pytest.raises(DataError, match=r"\.eval, which the published one does not need"):
        read_inert(path)
    assert not canary.exists()


def array_state(dtype, shape, content):
    made = (Global("numpy", "ndarray"), (0,), b"b")
    function = Global("numpy.core.multiarray", "_reconstruct")
    return Call(function, made, (1, shape, dtype, False, content))


def plain_type(code, flags=0):
    state = (3, b"|", None, None, None, 8, 8, flags)
    return Call(Global("numpy", "dtype"), (code, 0, 1), state)


@pytest.mark.parametrize(
    "crafted",
    [
        array_state(plain_type(b"O8"), (1,), b"\x41" * 8),  # bytes taken for a pointer
        array_state(plain_type(b"u1"), (1 << 40,), b"\0"),  # more than there is
        array_state(plain_type(b"V8"), (1,), b"\0" * 8),
        array_state(plain_type(b"u1,O"), (1,), b"\0" * 9),
        array_state(None, (1,), b"\0"),
        Call(Global("numpy.core.multiarray", "scalar"), (plain_type(b"O8"), b"\x41" * 8)),
        Call(Global("__builtin__", "slice"), (), None),
    ],
)
def test_arrays_that_lie_about_themselves_are_refused(tmp_path, crafted):
    path = tmp_path / "a.pkl"
    with path.open("wb") as stream:
        Python2Pickler(stream).dump([crafted])
    with pytest.raises(DataError, match=r"is no pickle of numbers, text, arrays and tables"):
        read_inert(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02", b"not a pickle", pickle.dumps({"a": 1})[:-3], b"(" * 50 + b"."],
)
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pkl"):
        read_inert(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_inert(tmp_path / "missing.pkl")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_values_and_arrays_survive(tmp_path, protocol):
    arrays = [
        np.arange(6, dtype="<i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([["none", "Loc"]]),
        np.array([True, False]),
        np.arange(3, dtype=">u2"),
    ]
    path = tmp_path / "a.pkl"
    path.write_bytes(
        pickle.dumps({"arrays": arrays, "n": np.float32(1.5), "t": (1, b"x")}, protocol)
    )
    read = read_inert(path)
    assert read["n"] == 1.5
    assert read["t"] == (1, b"x")
    for found, expected in zip(read["arrays"], arrays, strict=True):
        np.testing.assert_array_equal(found.array, expected)
        assert found.array.dtype == expected.dtype


def test_only_a_table_has_columns(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([1, 2], 2))
    with pytest.raises(DataError, match="holds no table"):
        pickled_columns(read_inert(path))
    assert PickledArray().array.size == 0
