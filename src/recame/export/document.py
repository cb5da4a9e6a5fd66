"""Every field of `bundle.json`; the JSON schema and the table in the docs are made from it.

The runtime reads the document without this module, so that it needs no pydantic; tests check that
`export` writes what is described here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from recame.runtime.bundle import BUNDLE_SCHEMA

Counted = int | None


class _Part(BaseModel):
    """A part of the document; a field that is not declared is an error."""

    model_config = ConfigDict(extra="forbid")


def _told(description: str) -> Any:
    return Field(description=description)


def _maybe(description: str) -> Any:
    """A field that may be absent."""
    return Field(default=None, description=description)


class Labels(_Part):
    """The classes."""

    schema_: int = Field(alias="schema", description="1")
    names: list[str] = _told("of the C classes, in the order of the class axis of every output")
    counts: list[int] = _told("training images of each class")
    normal: str | None = _told("the class that means no defect; null: none was named")
    critical: list[str] = _told("classes whose escapes matter most")


class Preprocess(_Part):
    """The size and depth of the graph's input, and the normalisation inside the graph."""

    schema_: int = Field(alias="schema", description="1 to 4, by the fields that are there")
    height: int = _told("rows of the input; with tiles, the rows of all tiles together")
    width: int = _told("columns of the input")
    channels: Literal[1, 3] = _told("1 grey, 3 colour")
    bit_depth: Literal[8, 16] = _told("of the input's integers: uint8 or uint16")
    scale: float = _told("the graph first divides stored values by it; larger values are white")
    mean: list[float] = _told("one per channel; the graph then subtracts it")
    std: list[float] = _told("one per channel; the graph then divides by it")
    resize: Literal["stretch", "pad", "crop"] = _told("the rule if the shape differs")
    float_range: tuple[float, float] | None = _maybe(
        "values of floating-point files that are black and white; absent: such files are refused"
    )
    context: float | None = _maybe("side of the crop, in longer sides of the box; absent: 2")
    tiles: int | None = _maybe("tiles that follow below the whole image; absent: none")


class Decode(_Part):
    """From a file to integers."""

    steps: list[str] = _told("what is done, in this order")
    orientation: Literal["exif"] = _told("the EXIF orientation is undone")
    alpha: Literal["dropped"] = _told("RGB values stay as they are stored")
    to_16_bit: str = _told("8-bit values for a model of 16 bits")
    to_8_bit: str = _told("16-bit values for a model of 8 bits")
    to_colour: str = _told("a grey image for a colour model")
    to_grey: str = _told("a colour image for a grey model, in integers of the model's depth")


class Resize(_Part):
    """From the image's size to the input's size."""

    rule: Literal["stretch", "pad", "crop", "pieces"] = _told("as `preprocess.resize`, or pieces")
    shrink: Literal["area"] = _told("first step: to the smaller of both sizes on each axis")
    enlarge: Literal["linear"] = _told("second step: to the size of the input")
    each_axis_alone: bool = _told("one axis may shrink while the other grows")
    pixel_centres: Literal["half"] = _told("pixel i spans i to i + 1, its centre is i + 0.5")
    border: Literal["repeat"] = _told("of enlarging: values beyond the outermost pixel centres")
    rounding: Literal["nearest"] = _told("once after each of the two steps")


class GraphInput(_Part):
    """The input of the graph."""

    name: str = _told("of the input")
    type: Literal["uint8", "uint16"] = _told("stored integers")
    layout: Literal["NHWC"] = _told("images, rows, columns, channels")
    shape: list[Counted] = _told("null: any number of images")
    channel_order: Literal["grey", "RGB"] = _told("of the last axis")
    values: Literal["stored"] = _told("neither scaled nor normalised")
    normalised_by: Literal["graph"] = _told("applies scale, mean and std")


class GraphOutput(_Part):
    """One output of the graph."""

    type: Literal["float32"] = _told("in every precision of the graph")
    axes: list[str] = _told("the meaning of each axis")
    shape: list[Counted] = _told("null: the number of images that were given")
    calibrated: bool = _told("false: the client applies the calibration")


class Answer(_Part):
    """From the graph's probabilities to a decision."""

    probabilities: str = _told("the calibration of p, the output `probabilities`")
    scale: str = _told("where the scale is found")
    bias: str = _told("where the bias is found")
    floor: float = _told("smaller probabilities are replaced by this one")
    class_: str = Field(alias="class", description="the predicted class of an image")
    actions: str = _told("the file that says what is done with an image")


class Interface(_Part):
    """What a client in any language does; each word stands for exactly one calculation."""

    schema_: int = Field(alias="schema", description="1; increases if a word changes its meaning")
    described_in: str = _told("the page that explains the calculations")
    decode: Decode
    resize: Resize
    input: GraphInput
    outputs: dict[str, GraphOutput] = _told("outputs by name, `probabilities` first")
    answer: Answer


class Graph(_Part):
    """The graph's names and sizes."""

    input: str = _told("name of the input")
    outputs: list[str] = _told("names of the outputs")
    views: int = _told("flips and rotations that the graph averages over")
    temperature: float = _told("inside the graph: 1; only bundles of schema 1 have another")
    num_experts: int = _told("E")
    num_classes: int = _told("C")
    attribution_grid: list[int] | None = _told("height and width of the map; null: no such output")


class CalibrationFacts(_Part):
    """The calibration of the graph's probabilities."""

    temperature: float = _told("T; with class scales, 1 / their geometric mean")
    fitted_on: dict[str, Any] = _told("split, images, views, weighting and weights")
    note: str = _told("why the calibration differs from the best fit; usually empty")
    method: str | None = _maybe("`bias_corrected` or `vector`; absent: only a temperature")
    scale: list[float] | None = _maybe("of each class; absent: 1 / T")
    bias: list[float] | None = _maybe("of each class; absent: 0")


class Run(_Part):
    """The run that was exported."""

    name: str = _told("name of its folder")
    seed: int = _told("of its random numbers")
    backbone: str = _told("the network")
    architecture: dict[str, Any] = _told("all values that are needed to build the network")


class ParityFacts(_Part):
    """The graph in its runtime compared with the network in torch."""

    images: int = _told("real images compared")
    source: str = _told("where they come from")
    max_difference: float = _told("largest difference of a probability")
    mean_difference: float = _told("mean over images of each image's largest difference")
    agreement: float = _told("share of images with the same predicted class")
    differing: int = _told("images with another predicted class")
    ties: int = _told("how many of these have two classes that are equal within the tolerance")
    tail_classes: list[str] = _told("classes of the rarest group")
    tail_images: int = _told("images of these classes")
    tail_agreement: float | None = _told("share of these images with the same predicted class")
    synthetic_difference: float = _told("largest on black, white and random images")
    batch_difference: float = _told("largest between batches of several sizes")


class TrainingPriorFacts(_Part):
    """The class prior of the probabilities."""

    prior: list[float] = _told("share of each class; empty if it is not known")
    base: str = _told("the loss")
    experts: list[dict[str, Any]] = _told("how each expert was trained on the classes")
    unknown: str = _told("why it is not known; usually empty")


class GraphFile(_Part):
    """One file of the graph."""

    sha256: str = _told("of its content")
    bytes: int = _told("its size")


class BundleDocument(_Part):
    """`bundle.json`: everything that a client needs to use the graph."""

    schema_: Literal[2] = Field(alias="schema", description=f"{BUNDLE_SCHEMA}")
    recame: str = _told("version that wrote it")
    created: str = _told("when, in UTC")
    format: Literal["onnx", "openvino"] = _told("of the graph")
    precision: Literal["fp32", "fp16", "int8"] = _told("of the graph")
    label_space: Labels
    preprocess: Preprocess
    interface: Interface
    graph: Graph
    calibration: CalibrationFacts
    thresholds: dict[str, Any] = _told("in bundles of earlier versions; else empty")
    data_fingerprint: str = _told("of the training data")
    run: Run
    versions: dict[str, str] = _told("of the libraries that were used")
    parity: ParityFacts
    max_pixels: int = _told("an image file with more pixels is refused")
    training_prior: TrainingPriorFacts
    files: dict[str, GraphFile] = _told("files of the graph by name")
    checksum: str = _told(
        "SHA-256 of the document without this field, as JSON with sorted keys, without spaces, "
        "non-ASCII characters escaped"
    )


def document_schema() -> dict[str, Any]:
    """Return the JSON schema of `bundle.json`; it allows further fields."""
    opened: dict[str, Any] = _open(BundleDocument.model_json_schema(by_alias=True))
    return opened


def field_table() -> str:
    """Return a Markdown table with one row per field and its dotted name."""
    schema = BundleDocument.model_json_schema(by_alias=True)
    rows = [f"| `{name}` | {text} |" for name, text in _rows(schema, schema["$defs"], "")]
    return "\n".join(["| field | is |", "| --- | --- |", *rows]) + "\n"


def _rows(
    part: Mapping[str, Any], parts: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, str]]:
    for name, field in part["properties"].items():
        of_each = field.get("additionalProperties", field)
        reference = of_each.get("$ref") if isinstance(of_each, dict) else None
        dotted = f"{prefix}{name}" + (".*" if of_each is not field and reference else "")
        if reference is None:
            yield dotted, field["description"]
            continue
        inner = parts[reference.rpartition("/")[2]]
        yield dotted, field.get("description", inner["description"].rstrip("."))
        yield from _rows(inner, parts, f"{dotted}.")


def _open(schema: Any) -> Any:
    """The same schema, but further fields are allowed: a later version may add some."""
    if isinstance(schema, list):
        return [_open(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = schema.get("additionalProperties") is False
    kept = {name: value for name, value in schema.items() if name != "additionalProperties"}
    return {name: _open(value) for name, value in (kept if closed else schema).items()}
