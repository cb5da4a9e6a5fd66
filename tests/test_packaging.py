"""What pyproject.toml promises about other people's libraries."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
)

#: No bound: a major version of theirs comes by the calendar and has broken nothing of ours, and a
#: bound would keep their security fixes from a line's PC.
UNBOUND = {"pillow", "rich", "pyarrow", "fsspec"}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]


def bound(requirement: Requirement) -> str:
    return ",".join(sorted(map(str, requirement.specifier)))


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_what_may_break_us_has_a_bound(requirement: Requirement) -> None:
    if requirement.name == "recame" or requirement.name in UNBOUND:
        return
    operators = {part.operator for part in requirement.specifier}
    assert "==" in operators or {">=", "<"} <= operators


def test_a_library_has_the_same_bound_wherever_it_is_named() -> None:
    bounds: dict[str, set[str]] = {}
    for requirement in requirements():
        bounds.setdefault(requirement.name, set()).add(bound(requirement))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_locked_versions_are_within_the_bounds() -> None:
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in LOCKED.items()}
    for requirement in requirements():
        version = locked.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert version is None or requirement.specifier.contains(version), str(requirement)


def test_every_torch_from_2_11_to_2_15_is_allowed() -> None:
    (torch,) = {str(r): r for r in requirements() if r.name == "torch"}.values()
    versions = [f"2.{minor}.{patch}" for minor in range(10, 17) for patch in (0, 3)]
    allowed = [version for version in versions if torch.specifier.contains(version)]
    assert allowed == [f"2.{minor}.{patch}" for minor in range(11, 16) for patch in (0, 3)]
