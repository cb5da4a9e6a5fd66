"""A group of settings, and the kinds of values that settings have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: frozen, and no unknown name is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
