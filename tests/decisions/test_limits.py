from __future__ import annotations

import numpy as np
import pytest

from recame.decisions.limits import SMALLEST, Limits, PerClass, Prices, Review
from recame.errors import ConfigError


def test_nothing_asked_is_the_smallest_escape_at_95_percent() -> None:
    limits = Limits.from_dict({})
    assert limits == Limits()
    assert (limits.confidence, limits.escape.limit("crack")) == (0.95, SMALLEST)
    assert not limits.purity.asked


ASKED = {
    "confidence": 0.9,
    "escape": {"default": 0.02, "bridge": 0.01},
    "purity": {"bridge": 0.95},
    "overkill": 0.1,
    "review": {"share": 0.08, "per_hour": 240, "images_per_hour": 3000, "lot": "lot"},
    "unknown_false_alarm": {"overall": 0.02, "tail": 0.06},
    "line_mix": {"good": 98, "bridge": 2},
    "prices": {"escape": 500, "false_call": 2, "review": 1},
    "audit": 0.01,
    "group": "board",
    "signed_by": "A. Engineer",
}


def test_every_limit_is_read_and_told_again() -> None:
    limits = Limits.from_dict(ASKED)
    assert limits.escape == PerClass(0.02, {"bridge": 0.01})
    assert limits.purity.limit("open") is None
    assert limits.prices == Prices(500, 2, 1)
    assert (limits.unknown_false_alarm, limits.tail_false_alarm) == (0.02, 0.06)
    assert Limits.from_dict(limits.to_dict()) == limits


def test_a_number_alone_is_of_all_classes() -> None:
    limits = Limits.from_dict({"escape": 0.05, "unknown_false_alarm": 0.02})
    assert limits.escape == PerClass(0.05)
    assert limits.unknown_false_alarm == 0.02
    assert Limits.from_dict({"escape": {"default": SMALLEST, "open": 0.1}}).escape == PerClass(
        SMALLEST, {"open": 0.1}
    )


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"escape": 1.2}, "limits.yaml: escape is 1.2; it must be a number from 0 to 1"),
        ({"escape": {"default": True}}, "escape.default is True"),
        ({"escape": "tiny"}, "escape is 'tiny'"),
        ({"purity": SMALLEST}, "purity is 'smallest'"),
        ({"confidence": 1.0}, "confidence is 1.0; it must be a number from 0.5 to 1"),
        (
            {"overkil": 0.1},
            "overkil is no limit, so it would not be kept. The limits are confidence",
        ),
        ({"prices": {"escape": 3}}, "prices lack false_call, review"),
        ({"prices": {"escape": -1, "false_call": 1, "review": 1}}, "a number of 0 or more"),
        ({"line_mix": {}}, "line_mix is {}"),
        ({"line_mix": {"good": 0}}, "the weights of line_mix are all 0"),
        (
            {"review": 0.1},
            "it takes share, per_hour, images_per_hour, lot, for instance review: {share: 0.02}",
        ),
        ({"review": {"shares": 0.1}}, "it takes share, per_hour, images_per_hour, lot"),
        ({"review": {"share": 1.1}}, "review.share is 1.1; it must be a number from 0 to 1"),
        (
            {"review": {"per_hour": 240}},
            "limits.yaml: review.per_hour is 240, but it is not known how many images come",
        ),
        ({"review": {"per_hour": 240, "images_per_hour": 0}}, "give review.images_per_hour (above"),
        ({"review": {"images_per_hour": 9}}, "give review.per_hour as well"),
        ({"review": {"lot": "lot"}}, "nothing limits how many images of a lot people"),
        ({"review": {"share": 0.1, "lot": 7}}, "review.lot is 7; give the name of the column"),
        ({"signed_by": " "}, "signed_by is empty"),
        ({"audit": float("nan")}, "audit is nan"),
    ],
)
def test_what_is_no_limit_is_refused(asked: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Limits.from_dict(asked, "limits.yaml")
    assert told in str(refused.value)


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="must hold limits by name, found list"):
        Limits.from_dict([0.02])  # type: ignore[arg-type]


def test_limits_of_classes_that_there_are_not() -> None:
    limits = Limits.from_dict({"escape": {"brigde": 0.01}})
    with pytest.raises(ConfigError, match="escape names the class 'brigde', which the model does"):
        limits.check_classes(["good", "bridge"], "good", "limits")
    with pytest.raises(ConfigError, match="'good' is the normal class: use overkill"):
        Limits.from_dict({"escape": {"good": 0.1}}).check_classes(["good", "x"], "good", "limits")
    with pytest.raises(ConfigError, match="escape and overkill need a normal class"):
        Limits.from_dict({"overkill": 0.1}).check_classes(["good", "x"], None, "limits")
    Limits().check_classes(["a", "b"], None, "limits")


def test_the_line_s_mix() -> None:
    usual = np.array([30.0, 10.0])
    assert Limits().mix(["good", "x"], usual).tolist() == [0.75, 0.25]
    stated = Limits.from_dict({"line_mix": {"good": 99, "x": 1}})
    assert stated.mix(["good", "x"], usual).tolist() == [0.99, 0.01]


@pytest.mark.parametrize(
    ("asked", "budget"),
    [
        ({}, None),
        ({"share": 0.08}, 0.08),
        ({"per_hour": 240, "images_per_hour": 3000}, 0.08),
        ({"per_hour": 240, "images_per_hour": 3000, "share": 0.05}, 0.05),
        ({"per_hour": 240, "images_per_hour": 3000, "share": 0.2}, 0.08),
        ({"per_hour": 900, "images_per_hour": 300}, 1.0),
        ({"share": 0}, 0.0),
    ],
)
def test_what_people_can_see_is_the_smaller_share(
    asked: dict[str, float], budget: float | None
) -> None:
    assert Limits.from_dict({"review": asked}).review.budget == budget


def test_people_of_limits_made_in_python() -> None:
    with pytest.raises(ConfigError, match="not known how many images come in an hour"):
        Review(per_hour=30)
    assert Limits(review=Review(share=0.1)).to_dict()["review"] == {"share": 0.1}
