"""What pyproject.toml promises about other people's libraries."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LOCKED = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
)

#: No bound: a major version of theirs comes by the calendar and has broken nothing of ours, and a
#: bound would keep their security fixes from a line's PC.
UNBOUND = {"pillow", "rich", "pyarrow", "fsspec"}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    listed = (PROJECT["dependencies"], *extras, *PYPROJECT["dependency-groups"].values())
    return [Requirement(line) for lines in listed for line in lines]


def brought(extra: str) -> set[str]:
    """The packages that an extra installs, also by the extras that it names."""
    found = set()
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name != "recame":
            found.add(requirement.name)
        for inner in requirement.extras if requirement.name == "recame" else ():
            found |= brought(inner)
    return found


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


def test_no_extra_brings_both_kinds_of_onnx_runtime_and_train_brings_one() -> None:
    both = {"onnxruntime", "onnxruntime-gpu"}
    brings = {extra: brought(extra) & both for extra in PROJECT["optional-dependencies"]}
    assert {extra for extra, found in brings.items() if found == {"onnxruntime-gpu"}} == {
        "runtime-gpu",
        "train-gpu",
    }
    assert {extra for extra, found in brings.items() if found == {"onnxruntime"}} == {
        "runtime",
        "train",
        "all",
    }
    assert both not in brings.values()
    for extra in ("export", "cluster", "tensorboard", "lift"):
        assert brought("train-alone") < brought(extra)


def test_all_is_all_that_a_cpu_can_use() -> None:
    extras = PROJECT["optional-dependencies"]
    listed = set().union(*map(brought, extras)) - {"onnxruntime-gpu"}
    assert brought("all") == listed
