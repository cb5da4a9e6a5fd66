"""Malformed inputs, one a seed, given to what users call: run as a program by `test_malformed.py`.

    malformed.py CORPUS WORK KIND FIRST COUNT [KIND FIRST COUNT ...]

tells on stdout, a JSON line each: `at` before an input, `failed` for whatever came out that is no
answer and no `RecameError`, and `done` after it: whether it was refused, and the largest memory
that was held for this kind. `libraries` is what the process held before the kind's first input.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import shutil
import struct
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

import recame
from recame.errors import RecameError
from recame.files import read_json
from recame.machine import peak_memory_mib

#: Numbers that parsers stumble over.
NUMBERS = (
    *(0, 1, 2, 7, 127, 128, 255, 256, 1000, 30_000, 32_767, 32_768, 65_535, 65_536, 2**24),
    *(2**31 - 1, 2**31, 2**32 - 1),
)
#: The JSON values that a document may hold where another kind belongs.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "x", "../../../etc/passwd", "\0", "x" * 10_000, "\ud800", [], {}, [[]]),
    *([None], {"": None}, "NaN", "1e999", [1] * 1000),
)


# ---- changes of bytes


def bent(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four changes that know nothing of what the bytes mean."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(BENDS)(rng, data, others)
    return data


def _place(rng: random.Random, data: bytes) -> int:
    # Half of the changes meet the first bytes, where headers are.
    most = len(data) if rng.random() < 0.5 else min(len(data), 64)
    return rng.randrange(most) if most else 0


def _cut(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    return data[: _place(rng, data)]


def _flip(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at, size = _place(rng, data), rng.choice((1, 2, 4, 4, 8, 100))
    filled = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))
    return data[:at] + filled + data[at + size :]


def _number(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at, order = _place(rng, data), rng.choice("<>")
    value, kind = rng.choice(NUMBERS), rng.choice("HI")
    return (
        data[:at]
        + struct.pack(order + kind, value % 2 ** (16 if kind == "H" else 32))
        + data[at + (2 if kind == "H" else 4) :]
    )


def _remove(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.choice((1, 2, 16, 1000)) :]


def _repeat(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at, size = _place(rng, data), rng.choice((1, 4, 64, 1000))
    return data[:at] + data[at : at + size] * rng.choice((2, 3, 100)) + data[at + size :]


def _splice(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: _place(rng, data)] + other[_place(rng, other) :]


BENDS: tuple[Callable[[random.Random, bytes, list[bytes]], bytes], ...] = (
    *(_cut, _flip, _flip, _overwrite, _number, _number, _remove, _repeat, _splice),
)


# ---- headers that lie


def lied(rng: random.Random, data: bytes) -> bytes:
    """An image whose header says another size, depth or length than its pixels have."""
    numbers = [rng.choice(NUMBERS) for _ in range(2)]
    if data.startswith(b"\x89PNG"):
        depth, colour = rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1))
        body = b"IHDR" + struct.pack(">IIBBBBB", *numbers, depth, colour, 0, 0, rng.choice((0, 1)))
        return data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    if data.startswith(b"\xff\xd8") and (at := data.find(b"\xff\xc0")) > 0:
        return data[: at + 5] + struct.pack(">HH", *(n % 65536 for n in numbers)) + data[at + 9 :]
    if data.startswith(b"BM"):
        at = rng.choice((2, 10, 14, 18, 22, 26, 28, 30, 46))
        return data[:at] + struct.pack("<I", numbers[0]) + data[at + 4 :]
    if data[:2] in (b"II", b"MM"):
        return _lied_tiff(rng, data)
    if data[:1] == b"P":
        words = data.split(maxsplit=4)
        words[rng.randrange(1, min(4, len(words)))] = str(numbers[0]).encode()
        return b"\n".join(words)
    if (at := data.find(b"\xff\x4f\xff\x51")) >= 0:
        return _lied_size(rng, data, at + 8)
    if data[8:12] == b"WEBP":
        at = rng.choice((4, 16, 20, 24, 26, 27))
        return data[:at] + struct.pack("<I", numbers[0] % 2**32) + data[at + 4 :]
    return data


def _lied_size(rng: random.Random, data: bytes, at: int) -> bytes:
    """JPEG 2000: image, tile and their places, in 32 bits each; then the channels."""
    if rng.random() < 0.3:
        at += 34 + rng.randrange(3)
        return data[:at] + bytes([rng.choice((0, 1, 3, 7, 11, 15, 37, 143))]) + data[at + 1 :]
    number = struct.pack(">I", rng.choice(NUMBERS) % 2**32)
    at += 4 * rng.randrange(8)
    return data[:at] + number + data[at + 4 :]


def _lied_tiff(rng: random.Random, data: bytes) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    if start + 2 > len(data):
        return data
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    at = start + 2 + 12 * rng.randrange(max(1, count))
    if rng.random() < 0.2:  # the next page is this one, or lies anywhere
        at = start + 2 + 12 * count
        return data[:at] + struct.pack(order + "I", rng.choice((start, 8, 2**31))) + data[at + 4 :]
    field = rng.choice((0, 2, 4, 8))
    kind = "H" if field < 4 else "I"
    value = rng.choice(NUMBERS) % (2 ** (16 if kind == "H" else 32))
    packed = struct.pack(order + kind, value)
    return data[: at + field] + packed + data[at + field + len(packed) :]


def bomb(rng: random.Random) -> bytes:
    """A small PNG whose many pixels are all there."""
    side = rng.choice((2000, 4000, 6000))
    colour, channels = rng.choice(((0, 1), (2, 3)))

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    rows = zlib.compress(bytes((side * channels + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


# ---- changes of documents


def bent_text(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A text, changed by bytes or by what a hand does to it."""
    if rng.random() < 0.4:
        return bent(rng, data, others)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    odd = rng.choice(
        (
            *(b"", b",,,,,,,,", b'"', b'"unclosed', b"\0", b"\xff\xfe", b"=1+1", b"\xe9", b"\r"),
            *(b"a" * 100_000, b"," * 10_000, "\u202e\ud83d\ude00".encode("utf-8", "surrogatepass")),
            *(b"9" * 6000, b"2001-99-99", b"!!python/object:os.system x", b"*x", b"&x [*x]"),
            *(b"- " * 3000, b"[" * 5000, b"{" * 5000, b"a: " * 500, b"? ? ?", b"1e999", b".nan"),
            *(b"!!binary x", b"!!int x", b"!!set {a}", b"<<: *x", b"0o9", b"0x", b"1_0:99:99"),
        )
    )
    change = rng.randrange(5)
    if change == 0:
        lines[at] = odd
    elif change == 1:
        lines.insert(at, odd)
    elif change == 2:
        words = lines[at].replace(b":", b",").split(b",")
        words[rng.randrange(len(words))] = odd
        lines[at] = rng.choice((b",", b": ")).join(words)
    elif change == 3:
        lines[at:at] = lines[rng.randrange(len(lines)) :]
    else:
        rng.shuffle(lines)
    return b"\n".join(lines)


def laughs(rng: random.Random) -> bytes:
    """Settings that name themselves over and over: thousands of millions of values."""
    width = rng.choice((2, 10))
    lines = ["a0: &a0 [1, 2]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, 9)]
    where = rng.choice(("data", "model", "finetune", "run"))
    name = rng.choice(("size", "epochs", "x", "critical_classes"))
    return ("\n".join([*lines, f"{where}: {{{name}: *a8}}"]) + "\n").encode()


def bent_json(rng: random.Random, values: Any) -> Any:
    """A document with one to three of its values changed, gone, or under another name."""
    values = json.loads(json.dumps(values))
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders: list[Any] = []
        waiting = [values]
        while waiting:
            one = waiting.pop()
            if isinstance(one, dict | list) and one:
                holders.append(one)
                waiting += one.values() if isinstance(one, dict) else one
        if not holders:
            return rng.choice(VALUES)
        holder = rng.choice(holders)
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        change = rng.randrange(4)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[str(rng.choice(VALUES))[:50]] = holder.pop(key)
        else:
            holder[key] = rng.choice(VALUES)
    return values


def dumped(values: Any) -> bytes:
    return json.dumps(values).encode()


def deep(rng: random.Random) -> bytes:
    """JSON within JSON, deeper than parsers go."""
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    depth = rng.choice((900, 100_000))
    return (opened * depth + "1" + closed * depth).encode()


# ---- what is called


class Kinds:
    """What each kind of input is made from and given to; a method a kind."""

    def __init__(self, corpus: Path, work: Path) -> None:
        self.corpus, self.work = corpus, work
        self._files: dict[str, list[bytes]] = {}
        self._predictor: Any = None

    def files(self, kind: str) -> list[bytes]:
        if kind not in self._files:
            found = sorted((self.corpus / kind).iterdir())
            self._files[kind] = [path.read_bytes() for path in found]
        return self._files[kind]

    def _image(self, rng: random.Random) -> bytes:
        files = self.files("images")
        if rng.random() < 0.01:
            return bomb(rng)
        data = rng.choice(files)
        change = rng.random()
        if change < 0.35:
            data = lied(rng, data)
        return data if change < 0.25 else bent(rng, data, files)

    def images(self, rng: random.Random) -> None:
        """Bytes and files -> predictions."""
        if self._predictor is None:
            self._predictor = recame.load(self.corpus / "bundle", threads=1)
        data = self._image(rng)
        given: Any = data
        if rng.random() < 0.3:
            given = (
                self.work / f"image{rng.choice(('.png', '.jpg', '.tif', '.bmp', '.webp', '.jp2'))}"
            )
            given.write_bytes(data)
            if rng.random() < 0.3:
                given = f"{given}#{rng.choice((1, 2, 3, 999_999))}"
        (found,) = self._predictor.predict(given)
        assert (found.label is None) == (found.error is not None)
        if found.label is None:
            raise RecameError(found.error)

    def folders(self, rng: random.Random) -> None:
        """A folder a class, with what image files may be -> an inspection, where quick."""
        folder = self.work / "set"
        shutil.rmtree(folder, ignore_errors=True)
        from recame.config import DataConfig
        from recame.data.dataset import load_inspection_set
        from recame.data.manifest import read_manifest

        names = ["ok", "Ok ", "hole", "train", ".x", "\u00e9", "e\u0301", "a" * 200, "con", "-x"]
        for name in rng.sample(names, rng.randrange(1, 5)):
            (folder / name).mkdir(parents=True)
            for number in range(rng.randrange(4)):
                suffix = rng.choice(
                    (
                        *(".png", ".tif", ".jpg", ".bmp", ".PNG", ".webp"),
                        *(".pgm", ".jp2", "", ".csv"),
                    )
                )
                data = rng.choice((self._image, lambda r: r.choice(self.files("images"))))(rng)
                (folder / name / f"{number}{suffix}").write_bytes(data)
        pages = rng.choice(("first", "all"))
        table = read_manifest(folder, min_classes=1, pages=pages)
        recame.inspect_set(table, decode=False)
        config = DataConfig(
            cache_dir=self.work / "cache",
            size=16,
            max_broken_fraction=0.9,
            float_range=rng.choice((None, (0.0, 1.0))),
        )
        load_inspection_set(table, config, seed=0)

    def manifests(self, rng: random.Random) -> None:
        """Tables, and a run's own."""
        from recame.data.manifest import read_manifest, read_recorded_manifest

        files = self.files("manifests")
        if rng.random() < 0.25:
            path = self.work / "manifest.parquet"
            parquets = self.files("parquet")
            path.write_bytes(bent(rng, rng.choice(parquets), parquets))
        else:
            path = self.work / "manifest.csv"
            path.write_bytes(bent_text(rng, rng.choice(files), files))
        if rng.random() < 0.3:
            read_recorded_manifest(path, "product")
            return
        labels = rng.choice(("required", "optional", "ignored"))
        table = read_manifest(path, labels=labels)
        if "label" in table and table["label"].notna().all():
            recame.inspect_set(table, decode=False)

    def settings(self, rng: random.Random) -> None:
        """YAML files, and words of a command line."""
        from recame.config.files import parse_settings

        files = self.files("settings")
        if rng.random() < 0.2:
            name = rng.choice(("data.size", "finetune.lr", "objective.tau", "x", "", "run.seed"))
            odd = bent_text(rng, b"x", files)[:20_000].decode("utf-8", "replace")
            recame.Config().updated(parse_settings([f"{name}={odd}"]))
            return
        path = self.work / "settings.yaml"
        if rng.random() < 0.05:
            content = laughs(rng)
        elif rng.random() < 0.4:
            values = bent_json(rng, yaml.safe_load(rng.choice(files)))
            content = yaml.safe_dump(values).encode("utf-8", "surrogatepass")
        else:
            content = bent_text(rng, rng.choice(files), files)
        path.write_bytes(content)
        recame.load_config(path)

    def _copied(self, name: str, *changed: str) -> Path:
        """A copy of a folder that links to the files that stay."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in (self.corpus / name).rglob("*"):
            to = folder / path.relative_to(self.corpus / name)
            if path.is_dir():
                to.mkdir(parents=True, exist_ok=True)
            elif path.name not in changed:
                to.parent.mkdir(parents=True, exist_ok=True)
                to.hardlink_to(path)
        return folder

    def _document(self, rng: random.Random, content: bytes) -> bytes:
        """A JSON file, changed as a document or as bytes."""
        change = rng.random()
        if change < 0.05:
            return deep(rng)
        if change < 0.3:
            return bent(rng, content, [content])
        return dumped(bent_json(rng, json.loads(content)))

    def runs(self, rng: random.Random) -> None:
        """A run folder of which one file is not as it was."""
        from recame.data.manifest import read_recorded_manifest
        from recame.decisions.calibration import load_calibration
        from recame.models import load_checkpoint
        from recame.runs.folder import RunFolder

        names = [
            *("run.json", "model.json", "label_space.json", "decisions.json", "metrics.json"),
            *("reasons.json", "config.yaml", "manifest.csv"),
        ]
        name = rng.choice([name for name in names if (self.corpus / "run" / name).exists()])
        content = (self.corpus / "run" / name).read_bytes()
        folder = self._copied("run", name)
        if name.endswith(".json"):
            changed = self._document(rng, content)
        else:
            changed = bent_text(rng, content, [content])
        if rng.random() > 0.03:  # else the file is gone
            (folder / name).write_bytes(changed)
        run = RunFolder.open(folder, finished=rng.random() < 0.5)
        config = run.load_config()
        _ = (
            run.state,
            run.device,
            run.reasons(),
            run.asked(),
            run.label_space(),
            run.weights_sha256(),
        )
        read_recorded_manifest(run.manifest_path, config.data.product_column)
        if (folder / "metrics.json").exists():
            read_json(folder / "metrics.json")
        if (folder / "decisions.json").exists():
            names = run.label_space().names
            load_calibration(folder / "decisions.json", run.answers(config), len(names))
        load_checkpoint(folder)
        recame.load(folder, threads=1)

    def weights(self, rng: random.Random) -> None:
        """safetensors that its description vouches for, or not."""
        from recame.models import load_checkpoint

        content = (self.corpus / "run" / "model.safetensors").read_bytes()
        document = json.loads((self.corpus / "run" / "model.json").read_bytes())
        if rng.random() < 0.5:
            content = bent(rng, content, [content])
        else:  # the header, which is JSON
            (length,) = struct.unpack("<Q", content[:8])
            header = dumped(bent_json(rng, json.loads(content[8 : 8 + length])))
            size = rng.choice((len(header), len(header), *NUMBERS, 2**63, 2**64 - 1))
            content = struct.pack("<Q", size) + header + content[8 + length :]
        folder = self._copied("run", "model.safetensors", "model.json")
        (folder / "model.safetensors").write_bytes(content)
        if rng.random() < 0.8:
            document["weights_sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "model.json").write_bytes(dumped(document))
        load_checkpoint(folder)

    def bundles(self, rng: random.Random) -> None:
        """A bundle whose document or graph is not as it was, signed anew as often as not."""
        folder = self._copied("bundle", "bundle.json", "model.onnx")
        document = json.loads((self.corpus / "bundle" / "bundle.json").read_bytes())
        graph = (self.corpus / "bundle" / "model.onnx").read_bytes()
        content = None
        if rng.random() < 0.35:
            graph = bent(rng, graph, [graph])
            document["files"]["model.onnx"] = {
                "sha256": hashlib.sha256(graph).hexdigest(),
                "bytes": len(graph),
            }
        elif rng.random() < 0.3:
            content = self._document(rng, dumped(document))
        else:
            document = bent_json(rng, document)
        if content is None:
            if isinstance(document, dict):
                document.pop("checksum", None)
                text = json.dumps(document, sort_keys=True, separators=(",", ":"))
                document["checksum"] = hashlib.sha256(text.encode()).hexdigest()
            content = dumped(document)
        (folder / "model.onnx").write_bytes(graph)
        (folder / "bundle.json").write_bytes(content)
        predictor = recame.load(folder, threads=1)
        predictor.predict([self.files("images")[0]])
        predictor.describe()


#: What each kind needs, loaded before its memory is counted.
NEEDED = {
    "images": ("recame.runtime", "onnxruntime"),
    "bundles": ("recame.runtime", "onnxruntime"),
    "settings": ("recame.config",),
    "manifests": ("recame.data.manifest", "recame.inspection", "pyarrow.parquet"),
    "folders": ("recame.data.dataset", "recame.inspection"),
    "runs": ("recame.models", "recame.runs.folder", "recame.inference.forward"),
    "weights": ("recame.models",),
}


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def own_memory_mib() -> float:
    """The largest memory so far but the pages of files, which the system may drop."""
    peak, status = peak_memory_mib(), Path("/proc/self/status").read_text(encoding="ascii")
    assert peak is not None
    files = next(line for line in status.splitlines() if line.startswith("RssFile:"))
    return peak - int(files.split()[1]) / 1024


def main(corpus: str, work: str, *asked: str) -> None:
    """Give inputs: of each kind in turn, from a first seed on, so many."""
    warnings.simplefilter("ignore")
    kinds = Kinds(Path(corpus), Path(work))
    for kind, first, count in zip(asked[::3], asked[1::3], asked[2::3], strict=True):
        for name in NEEDED[kind]:
            import_module(name)
        gc.collect()
        # From here on the kernel counts the largest memory anew.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        tell(libraries=[kind, own_memory_mib()])
        for seed in range(int(first), int(first) + int(count)):
            tell(at=[kind, seed])
            refused = False
            try:
                getattr(kinds, kind)(random.Random(f"{kind} {seed}"))
            except RecameError as error:
                refused = True
                if not str(error).strip():
                    tell(failed=[kind, seed, "an error without a word"])
            except Exception:  # noqa: BLE001 - any other is what is looked for
                tell(failed=[kind, seed, traceback.format_exc()[-3000:]])
            tell(done=[kind, refused, own_memory_mib()])


if __name__ == "__main__":
    main(*sys.argv[1:])
