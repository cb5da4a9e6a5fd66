"""A group of settings, and the kinds of values that settings have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from recame.errors import ConfigError
from recame.plugins import Plugin, as_plugin

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
#: A plug-in: code outside the package, as a path, a name or a mapping (`recame.plugins`).
Own = Annotated[Plugin, BeforeValidator(as_plugin)]


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"{ends[0]:g} is not below {ends[1]:g}: give the lower end first")
    return ends


def _pair(ends: object) -> object:
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise ValueError("give the lower and the upper end in brackets, for example [0,1]")
    return ends


Range = Annotated[tuple[FiniteFloat, FiniteFloat], BeforeValidator(_pair), AfterValidator(_rising)]


class Section(BaseModel):
    """A group of settings: frozen, and no unknown name is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    if not TYPE_CHECKING:  # a type checker knows that settings are frozen

        def __setattr__(self, name: str, value: object) -> None:
            """Refuse the change, and say how settings are changed."""
            raise ConfigError(
                f"{name} = {value!r}: settings cannot be changed in place, as a run, its "
                "checkpoints and its report share them. Make a changed copy: "
                'config.updated({"section.key": value})'
            )
