"""Types that stages pass to each other: batches, outputs, losses, preprocessing, predictions.

Nothing here imports torch at run time, so that a runtime without torch can share these types.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from recame.errors import CheckpointError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

PREPROCESS_SCHEMA = 4
#: Sides of what is seen of a box, in lengths of its longer side, where nothing else is said; for
#: ever, as what holds another value says so.
CONTEXT = 2.0

#: A path however people write it; a run folder and a bundle are one, too.
AnyPath = str | os.PathLike[str]

ResizeRule = Literal["stretch", "pad", "crop"]

Array = np.ndarray[Any, np.dtype[Any]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
#: Stored pixel values: uint8 or uint16.
Pixels = Array
ArrayT = TypeVar("ArrayT", "Tensor", "np.ndarray[Any, Any]")


class Batch(NamedTuple):
    """One training or inference batch.

    Attributes:
        images: (B, C, H, W), the stored pixels (uint8 or uint16 values), not yet scaled.
        target: (B,) int64 class indices of the label space; -1 where the label is unknown.
        index: (B,) int64 row numbers of the set's table, to find each image again.
    """

    images: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@dataclass(frozen=True)
class ExpertOutput:
    """What a model returns, always.

    Attributes:
        logits: (B, E, C) raw logits of each expert, without any prior added.
        features: (B, E, D) the features that each expert's classifier saw.
    """

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class LossResult:
    """What a loss returns, always.

    Attributes:
        total: () what to differentiate.
        parts: detached () values of the named, weighted terms; they add up to `total`.
    """

    total: Tensor
    parts: dict[str, Tensor]


def ensemble_logits(logits: ArrayT) -> ArrayT:
    """The ensemble rule: the mean of the experts' logits.

    Training, evaluation and export share this one function.

    Args:
        logits: (B, E, C).

    Returns:
        (B, C).
    """
    mean: ArrayT = logits.mean(1)
    return mean


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and 0 < int(value) <= _LONGEST_SIDE


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_range(value: object) -> bool:
    if value is None:
        return True
    pair = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    return pair and bool(value[0] < value[1])  # type: ignore[index]


#: Pixels; a resized image holds at most the square of it.
_LONGEST_SIDE = 2**15


@dataclass(frozen=True)
class PreprocessSpec:
    """How a file becomes the array that a model sees. Saved with the model, never guessed.

    Decoding and resizing to `height` x `width` happen outside the model in one function;
    scaling by `scale` and normalising by `mean` and `std` live inside it.

    Attributes:
        height: pixels.
        width: pixels.
        channels: 1 (grey) or 3 (RGB).
        bit_depth: 8 or 16; what the decoded array holds.
        scale: what a stored pixel value is divided by to fall in [0, 1].
        mean: one value a channel, in units of [0, 1].
        std: one value a channel, in units of [0, 1].
        resize: `stretch` changes the aspect ratio; `pad` keeps it and pads with the border's
            median; `crop` keeps it and cuts the centre.
        float_range: the values of floating-point files that are black and white; None: such files
            are refused.
        context: side of the square that is seen of a box (`file.png#xywh=10,20,30,40`), in lengths
            of the box's longer side; 1 or more.
        tiles: tiles of the image that follow below the whole of it, all of one size
            (`recame.data.tiles`): `height` is that of all pieces together.
    """

    height: int
    width: int
    channels: Literal[1, 3]
    bit_depth: Literal[8, 16]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: ResizeRule = "stretch"
    float_range: tuple[float, float] | None = None
    context: float = CONTEXT
    tiles: int = 0

    def __post_init__(self) -> None:
        """Check what no reader could repair."""
        for name, value, is_right in (
            ("height", self.height, _is_count(self.height)),
            ("width", self.width, _is_count(self.width)),
            ("channels", self.channels, self.channels in (1, 3) and _is_count(self.channels)),
            ("bit_depth", self.bit_depth, self.bit_depth in (8, 16)),
            ("scale", self.scale, _is_number(self.scale) and self.scale > 0),
            ("mean", self.mean, all(map(_is_number, self.mean))),
            ("std", self.std, all(_is_number(value) and value > 0 for value in self.std)),
            ("resize", self.resize, self.resize in get_args(ResizeRule)),
            ("float_range", self.float_range, _is_range(self.float_range)),
            ("context", self.context, _is_number(self.context) and self.context >= 1),
            ("tiles", self.tiles, self.tiles == 0 or _is_count(self.tiles)),
        ):
            if not is_right:
                raise CheckpointError(
                    f"PreprocessSpec has {name}={value!r}, with which no image can be prepared: it "
                    "was edited or damaged. Restore it from a copy of the run that wrote it."
                )
        if self.height % (self.tiles + 1):
            raise CheckpointError(
                f"PreprocessSpec has height={self.height}, which cannot be divided into "
                f"{self.tiles + 1} pieces of equal height: it was edited or damaged. Restore it "
                "from a copy of the run that wrote it."
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise CheckpointError(
                f"PreprocessSpec has {self.channels} channels but {len(self.mean)} means and "
                f"{len(self.std)} deviations: give one value for each channel."
            )

    @property
    def pieces(self) -> int:
        """Images that a model sees of one: itself, and its tiles."""
        return self.tiles + 1

    @property
    def piece_size(self) -> tuple[int, int]:
        """Height and width of each of them, in pixels; those of the image where it is whole."""
        return self.height // self.pieces, self.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a decoded image."""
        return np.dtype(np.uint8 if self.bit_depth == 8 else np.uint16)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary with its schema version.

        Without a range for floating-point files it is what the first schema holds, and with the
        usual context no more than the second, so that versions that know no other can read it.
        Without tiles it is at most the third.
        """
        fields = asdict(self)
        if self.float_range is None:
            del fields["float_range"]
        if self.context == CONTEXT:
            del fields["context"]
        if not self.tiles:
            del fields["tiles"]
        newer = {"tiles": 4, "context": 3, "float_range": 2}
        schema = max((newer[name] for name in newer.keys() & fields), default=1)
        return {"schema": schema, **fields}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessSpec:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: the schema is newer than this version, or a field is missing.
        """
        fields = dict(values)
        schema = fields.pop("schema", None)
        if not isinstance(schema, int) or schema > PREPROCESS_SCHEMA:
            raise CheckpointError(
                f"Preprocessing has schema {schema!r}; this version reads up to "
                f"{PREPROCESS_SCHEMA}. Update recame: pip install -U recame"
            )
        try:
            fields["mean"], fields["std"] = tuple(fields["mean"]), tuple(fields["std"])
            if fields.get("float_range") is not None:
                fields["float_range"] = tuple(fields["float_range"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"Preprocessing cannot be read ({error}): the file was edited or damaged. "
                "Take it again from the run that wrote it."
            ) from error

    def decode_fingerprint(self) -> str:
        """Hash of what decides the decoded bytes (not of the normalisation). 16 hex digits."""
        what: list[Any] = [self.height, self.width, self.channels, self.bit_depth, self.resize]
        if self.float_range is not None:
            what.append([float(end) for end in self.float_range])
        if self.context != CONTEXT:
            what.append({"context": float(self.context)})
        if self.tiles:
            what.append({"tiles": self.tiles, "scale": float(self.scale)})
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images, the experts' and the ensemble's.

    Attributes:
        table: N rows; column `image`, and where known `label`, `split`, `product` and any other
            column of the manifest.
        probabilities: (N, C) the ensemble's.
        expert_probabilities: (N, E, C) each expert's own.
        target: (N,) class indices; -1 where the label is unknown.
        features: (N, E, D) or None where they were not asked for.
        expert_weights: (E,) of the experts' logits in the ensemble, where they were learned on
            these images; None for the ensemble rule.
    """

    table: pd.DataFrame
    probabilities: np.ndarray[Any, np.dtype[np.float32]]
    expert_probabilities: np.ndarray[Any, np.dtype[np.float32]]
    target: np.ndarray[Any, np.dtype[np.int64]]
    features: np.ndarray[Any, np.dtype[np.float32]] | None = None
    expert_weights: np.ndarray[Any, np.dtype[np.float32]] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)
