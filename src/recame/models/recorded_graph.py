"""Record the operations and constants of a network while it runs.

A network runs on two images and on three. Each operation is recorded when it reaches torch's
kernels, below modules and Python functions. A value that depends on no image is a constant; a
number that differs between the two runs is a multiple of the batch size. Both are observed, not
guessed. This takes two forward passes, while `torch.export` takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Numbers of images of the two runs.
_BATCHES = (2, 3)


class UnrecordableError(Exception):
    """The network cannot be recorded; `torch.onnx` may be able to export it."""


@dataclass(frozen=True)
class Value:
    """The images, or a tensor that depends on them."""

    number: int
    shape: tuple[int | Batch, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Batch:
    """A size that is `times` the number of images."""

    times: int


@dataclass(frozen=True)
class Repeated:
    """A constant with one copy for each image, such as a class token.

    Attributes:
        row: (1, ...), one copy.
    """

    row: Tensor

    @property
    def shape(self) -> tuple[int | Batch, ...]:
        """Shape of all copies together."""
        return (Batch(1), *self.row.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.row.dtype


@dataclass(frozen=True)
class Operation:
    """One call of a kernel.

    Attributes:
        name: such as `aten.add.Tensor`.
        args: numbers, `Batch`, `Value`, `Repeated`, constant tensors, lists of these; defaults
            included.
        results: in order.
    """

    name: str
    args: tuple[Any, ...]
    results: tuple[Value, ...]


@dataclass(frozen=True)
class Recording:
    """The recorded operations of a network.

    Attributes:
        images: the input.
        operations: in order; those that no output needs are left out.
        outputs: the network's outputs.
        names: names of the network's weights, by identity.
    """

    images: Value
    operations: tuple[Operation, ...]
    outputs: tuple[Value, ...]
    names: dict[int, str] = field(repr=False)


def record(module: nn.Module, example: Tensor) -> Recording:
    """Record the operations of a module.

    Args:
        module: in evaluation mode, on the CPU; maps a batch to one tensor or a tuple of tensors.
        example: (B, ...), one image or more.

    Raises:
        UnrecordableError: its operations depend on the pixels, or on the number of images other
            than by a factor, or an output does not depend on the images.
    """
    # The runs have different pixels, to detect operations that depend on them.
    image = example[:1]
    other = torch.zeros_like(image) if bool(image.any()) else torch.ones_like(image)
    # Such small batches gain nothing from threads, which wait for each other on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        few, many = _Run.of(module, image, _BATCHES[0]), _Run.of(module, other, _BATCHES[1])
    finally:
        torch.set_num_threads(threads)
    if [call.name for call in few.calls] != [call.name for call in many.calls]:
        raise UnrecordableError("its operations depend on the pixels or on how many images pass")
    merged = _Merging(few, many)
    operations = [merged.operation(a, b) for a, b in zip(few.calls, many.calls, strict=True)]
    outputs = tuple(merged.argument(a, b) for a, b in zip(few.outputs, many.outputs, strict=True))
    if not all(isinstance(output, Value) for output in outputs):
        raise UnrecordableError("an output does not depend on the images")
    weights = [*module.named_parameters(), *module.named_buffers()]
    return Recording(
        merged.argument(few.images, many.images),
        tuple(_needed(operations, outputs)),
        outputs,
        {id(tensor): name for name, tensor in weights},
    )


@dataclass(frozen=True)
class _Call:
    """A call of a kernel with an argument that depends on the images."""

    name: str
    args: tuple[Any, ...]
    results: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Numbered:
    """Number of a tensor among those of a run that depend on the images."""

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Run(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the kernels of one forward pass."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.outputs: tuple[Any, ...] = ()
        # Keep all tensors alive, so that no two share an id or memory.
        self._kept: list[Tensor] = []
        self._numbers: dict[int, _Numbered] = {}
        self._sharing: dict[int, set[int]] = {}
        self._used: set[int] = set()
        self._stale: set[int] = set()
        self._count = 0
        self.images = self._number(images)

    @classmethod
    def of(cls, module: nn.Module, image: Tensor, size: int) -> _Run:
        """Run a module on `size` copies of an image (1, ...)."""
        # Not in inference mode: there, composite operations are not split into their kernels.
        with torch.inference_mode(mode=False), torch.no_grad():
            images = torch.cat([image] * size)
            run = cls(images)
            with run:
                result = module(images)
        run.outputs = tuple(map(run.told, result if isinstance(result, tuple) else (result,)))
        return run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run a kernel and record it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        filled = _filled(func, args, kwargs)
        known = tuple(self.told(value) for value in filled)
        made = result if isinstance(result, (tuple, list)) else (result,)
        tensors = [part for part in made if isinstance(part, Tensor)]
        changed = [value for value in filled if _changes(func) and value is tensors[0]]
        if any(isinstance(part, _Numbered) for part in _flat(known)):
            for tensor in changed:
                self._overwrite(func, tensor)
            self._used |= {id(part) for part in _flat(known) if isinstance(part, Tensor)}
            for tensor in tensors:
                self._number(tensor)
            self.calls.append(_Call(str(func), known, tuple(self.told(t) for t in tensors)))
        else:
            if any(id(tensor) in self._used for tensor in changed):
                raise UnrecordableError(f"{func} overwrites a constant that was used before")
            self._kept += tensors
        return result

    def told(self, value: Any) -> Any:
        """The number of a tensor that depends on the images; other values unchanged."""
        if isinstance(value, Tensor):
            if id(value) in self._stale:
                raise UnrecordableError("a tensor is used whose memory was overwritten")
            return self._numbers.get(id(value), value)
        if isinstance(value, (list, tuple)):
            return [self.told(part) for part in value]
        return value

    def _number(self, tensor: Tensor) -> _Numbered:
        self._kept.append(tensor)
        numbered = _Numbered(self._count, tuple(tensor.shape), tensor.dtype)
        self._count += 1
        self._numbers[id(tensor)] = numbered
        self._sharing.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))
        return numbered

    def _overwrite(self, func: Any, tensor: Tensor) -> None:
        """Note that other tensors in the same memory were overwritten and must not be used."""
        if id(tensor) not in self._numbers or tensor is self._kept[0]:
            raise UnrecordableError(f"{func} overwrites a weight, or the images")
        self._stale |= self._sharing[tensor.untyped_storage().data_ptr()] - {id(tensor)}


def _filled(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments in the schema's order."""
    declared = func._schema.arguments  # noqa: SLF001 - there is no public name for the arguments
    return tuple(
        args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
        for place, argument in enumerate(declared)
    )


def _changes(func: Any) -> bool:
    """Whether a kernel writes into its first argument and returns it."""
    first = func._schema.arguments[:1]  # noqa: SLF001
    return bool(first and first[0].alias_info is not None and first[0].alias_info.is_write)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


class _Merging:
    """Merges two runs, argument by argument."""

    def __init__(self, few: _Run, many: _Run) -> None:
        self._values: dict[int, Value] = {}

    def operation(self, few: _Call, many: _Call) -> Operation:
        """Merge a call of both runs."""
        args = [self.argument(a, b) for a, b in zip(few.args, many.args, strict=True)]
        results = [self.argument(a, b) for a, b in zip(few.results, many.results, strict=True)]
        return Operation(few.name, tuple(args), tuple(results))

    def argument(self, few: Any, many: Any) -> Any:
        """Merge an argument of both runs."""
        if isinstance(few, _Numbered) and isinstance(many, _Numbered):
            if few.number != many.number:
                raise UnrecordableError("its operations take other inputs for other batches")
            shape = tuple(map(_number, few.shape, many.shape))
            return self._values.setdefault(few.number, Value(few.number, shape, few.dtype))
        if isinstance(few, Tensor) and isinstance(many, Tensor):
            if few.shape[:1] != many.shape[:1] and _copies(few, many):
                return Repeated(few[:1])
            if few is not many and not _same(few, many):
                raise UnrecordableError("a constant depends on how many images pass, or on chance")
            return few
        if isinstance(few, list) and isinstance(many, list) and len(few) == len(many):
            return [self.argument(a, b) for a, b in zip(few, many, strict=True)]
        return _number(few, many)


def _same(few: Tensor, many: Tensor) -> bool:
    alike = few.dtype == many.dtype and few.shape == many.shape
    return alike and bool(torch.equal(few, many))


def _copies(few: Tensor, many: Tensor) -> bool:
    """Whether both runs have one equal copy for each image."""
    counted = (len(few), len(many)) == _BATCHES and few.shape[1:] == many.shape[1:]
    return counted and all(_same(few[:1], row) for row in (*few[:, None], *many[:, None]))


def _number(few: Any, many: Any) -> Any:
    if few == many:
        return few
    if isinstance(few, int) and isinstance(many, int):
        times = many - few
        if few == times * _BATCHES[0] and many == times * _BATCHES[1]:
            return Batch(times)
    raise UnrecordableError(f"a number is {few} for {_BATCHES[0]} images, {many} for {_BATCHES[1]}")


def _needed(operations: Sequence[Operation], outputs: Sequence[Any]) -> list[Operation]:
    """Operations whose results reach an output."""
    wanted, kept = {output.number for output in outputs}, []
    for operation in reversed(operations):
        if any(result.number in wanted for result in operation.results):
            wanted |= {part.number for part in _flat(operation.args) if isinstance(part, Value)}
            kept.append(operation)
    return kept[::-1]
