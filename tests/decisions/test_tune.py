from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from recame.decisions.actions import AUTOMATIC, RELEASE, REVIEW, UNKNOWN
from recame.decisions.expected import FRONTIER_LIMITS, risk_coverage
from recame.decisions.limits import Limits, PerClass
from recame.decisions.promises import risk_of_each
from recame.decisions.scored import Scored, release_scores
from recame.decisions.tune import tune
from recame.errors import ConfigError, DataError

NAMES = ("good", "bridge", "open")


def scored(
    number: int | tuple[int, int, int] = 400,
    spread: float = 5.0,
    seed: int = 0,
    groups: bool = False,
) -> Scored:
    rng = np.random.default_rng(seed)
    counts = (number,) * 3 if isinstance(number, int) else number
    target = np.repeat([0, 1, 2], counts)
    logits = spread * np.eye(3)[target] + rng.normal(0, 1, (len(target), 3))
    names = [f"{place}.png" for place in range(len(target))]
    boards = [f"B{place // 4}" for place in range(len(target))] if groups else None
    return Scored(logits, target, names, boards)


def test_the_usual_policy() -> None:
    found = tune(scored(), NAMES, "good")
    assert [promise.of for promise in found.promises] == ["bridge", "open"]
    assert all(promise.limit == 0.02 for promise in found.promises)
    assert found.facts["risk"] == risk_of_each(0.95, promises=2)
    assert found.policy.automatic_above.tolist() == [-math.inf] * 3
    share = found.expected.by_class
    assert share.sum(1) == pytest.approx(1)
    acted = found.policy.act(scored().logits)
    target = scored().target
    assert share[0, RELEASE] == (acted.action[target == 0] == RELEASE).mean()
    assert share[1, RELEASE] <= 0.02
    assert share[2, AUTOMATIC] > 0.9
    assert found.sentences()[0].startswith("At most 2.00% of bridge is released (")
    assert "All of these limits hold together with 95% confidence." in found.sentences()
    assert any("images are taken as independent" in note for note in found.notes)


def test_each_tuning_and_each_comparison_costs() -> None:
    first = tune(scored(spread=3.0), NAMES, "good")
    later = tune(scored(spread=3.0), NAMES, "good", tuning=3, comparisons=5)
    assert later.facts["risk"] == pytest.approx(first.facts["risk"] / 45)
    assert later.policy.release_above > first.policy.release_above


def test_groups_count_instead_of_images() -> None:
    found = tune(scored(groups=True), NAMES, "good", unit="board")
    assert found.facts["counts"] == {"good": 100, "bridge": 100, "open": 100}
    assert "of 100 boards in the calibration" in found.sentences()[0]
    assert not any("independent" in note for note in found.notes)


def test_what_was_fitted_to_these_images_is_an_estimate() -> None:
    found = tune(scored(), NAMES, "good", estimate="Joining weights were fitted to these images")
    assert not any(promise.holds for promise in found.promises)
    told = found.sentences()
    assert told[0].startswith("Estimated: at most 2.00% of bridge")
    # What all share is said once.
    assert "None of this is promised: Joining weights were fitted to these images." in told
    assert sum("Joining weights" in words for words in told) == 1
    assert not any("hold together" in told for told in found.sentences())


def test_limits_that_exclude_each_other_are_said_and_nothing_is_loosened() -> None:
    limits = Limits.from_dict({"escape": 0.02, "overkill": 0.01, "review": {"share": 0.001}})
    loose = tune(scored(spread=3.0), NAMES, "good", Limits.from_dict({"escape": 0.02}))
    found = tune(scored(spread=3.0), NAMES, "good", limits)
    # What people can see is kept beside the thresholds, and moves none.
    assert found.policy.to_dict() == {**loose.policy.to_dict(), "review_budget": 0.001}
    overkill, review = found.unmet
    assert f"{found.expected.overkill:.1%} of 400 normal images are not released" in overkill
    assert "the limit is 1.0%. No escape limit was loosened" in overkill
    assert "the limit is 0.1%" in review


@pytest.mark.parametrize(
    ("review", "told"),
    [
        ({"share": 0.02}, ["with 2.0%, people see none of a lot of fewer than 50 images"]),
        (
            {"per_hour": 60, "images_per_hour": 7000},
            ["with 0.9%, people see none of a lot of fewer than 117 images"],
        ),
        ({"share": 0.3}, []),
        ({"share": 0.0}, []),
    ],
)
def test_it_is_said_from_which_lot_on_people_see_an_image(
    review: dict[str, float], told: list[str]
) -> None:
    found = tune(scored(), NAMES, "good", Limits.from_dict({"review": review}))
    notes = [note for note in found.notes if "The review budget of a lot" in note]
    assert len(notes) == len(told)
    assert all(words in note for words, note in zip(told, notes, strict=True))


def test_the_frontier_gives_a_row_for_each_limit() -> None:
    rows = tune(scored(spread=3.0), NAMES, "good").frontier
    assert [row["escape_limit"] for row in rows] == list(FRONTIER_LIMITS)
    above = [row["release_above"] for row in rows]
    assert above == sorted(above, reverse=True)
    released = [row["normal_released"] for row in rows]
    assert released == sorted(released)
    assert [row["promised_classes"] for row in rows] == [0, 0, 0, 0, *[2] * 8]


def test_prices_choose_only_what_promises_leave_open() -> None:
    plain = tune(scored(spread=2.0), NAMES, "good", Limits.from_dict({"escape": 0.3}))

    def priced(escape: float, review: float) -> float:
        asked = {"escape": escape, "false_call": 1.0, "review": review}
        limits = Limits.from_dict({"escape": 0.3, "prices": asked})
        return tune(scored(spread=2.0), NAMES, "good", limits).policy.release_above

    # Where escapes cost nothing no normal image between the two is held back.
    least, free = plain.policy.release_above, priced(0.0, 1.0)
    scores = release_scores(scored(spread=2.0).logits, 0, np.ones(3))[:400]
    assert free >= least
    assert not ((scores > least) & (scores <= free)).any()
    assert priced(1000.0, 1.0) > plain.policy.release_above
    images, dear = scored(spread=2.0), replace(plain.policy, release_above=priced(1.0, 1e6))
    assert "below_release" not in dear.act(images.logits).reasons()
    assert "below_release" in replace(dear, release_above=0.0).act(images.logits).reasons()


def test_defects_weigh_in_release_as_they_come_and_the_unpromised_pass_by_no_call() -> None:
    limits = Limits.from_dict({"escape": {"bridge": 0.05}})
    found = tune(scored((400, 300, 2)), NAMES, "good", limits).policy
    assert found.guarded == {2}  # two images of `open` promise nothing
    assert found.defect_weights is not None
    assert found.defect_weights.tolist() == pytest.approx([1.0, 600 / 302, 1.0])
    # Of the same score, one is called `open`.
    rows = np.log([[0.45, 0.08, 0.47], [0.45, 0.47 / 2, 0.08]])
    free = replace(found, release_above=-9.0)
    assert free.act(rows).reasons()[0] != "released"
    assert free.act(rows).reasons()[1] == "released"
    assert free.act(np.log([[0.4, 0.5, 0.1]])).best.tolist() == [0]  # released as the normal class


def cost(limits: Limits, above: float) -> float:
    """Of releasing above a threshold, in plain words."""
    assert limits.prices is not None
    images, total = scored(spread=2.0), 0.0
    policy = tune(images, NAMES, "good", limits).policy
    acted = replace(policy, release_above=above).act(images.logits)
    called = images.logits.argmax(1)
    for target, best, action in zip(images.target, called, acted.action, strict=True):
        if action == RELEASE:
            total += limits.prices.escape if target != 0 else 0.0
        elif best == 0 or target == 0:  # a false call is booked or seen for the same price here
            total += 1.0
    return total


def test_the_threshold_of_least_cost() -> None:
    asked = {"escape": 30.0, "false_call": 1.0, "review": 1.0}
    limits = Limits.from_dict({"escape": 0.3, "prices": asked})
    found = tune(scored(spread=2.0), NAMES, "good", limits).policy.release_above
    best = cost(limits, found)
    bare = tune(scored(spread=2.0), NAMES, "good", Limits.from_dict({"escape": 0.3}))
    for above in np.linspace(max(-1.0, bare.policy.release_above), 8, 60):
        assert best <= cost(limits, float(above)) + 1e-9


def test_a_stated_line_weighs_the_classes() -> None:
    limits = Limits.from_dict({"line_mix": {"good": 98, "bridge": 2}})
    found = tune(scored(), NAMES, "good", limits).expected
    assert found.mix.tolist() == [0.98, 0.02, 0.0]
    assert found.share(RELEASE) == pytest.approx(
        0.98 * found.by_class[0, RELEASE] + 0.02 * found.by_class[1, RELEASE]
    )
    assert found.escape == pytest.approx(found.by_class[1, RELEASE])
    told = found.to_dict(NAMES)
    assert told["by_class"]["good"]["release"] == found.by_class[0, RELEASE]
    assert told["overkill"] == found.overkill


def test_without_a_normal_class_purity_is_what_can_be_asked() -> None:
    found = tune(scored(), NAMES, None, Limits.from_dict({"purity": 0.9}))
    assert found.policy.normal is None
    assert found.expected.escape is None
    assert [promise.kind for promise in found.promises] == ["purity"] * 3
    assert found.frontier == ()


def test_errors_fall_as_the_least_certain_go_to_people() -> None:
    images = scored(200, spread=2.0)
    found = risk_coverage(images, np.full(3, 1 / 3))
    wrong = images.logits.argmax(1) != images.target
    assert found.coverage[-1] == pytest.approx(1)
    assert found.errors[-1] == pytest.approx(wrong.mean())
    assert found.errors[300] < found.errors[-1]
    # An oracle sends the wrong ones away first.
    right = 1 - wrong.mean()
    assert found.oracle[found.coverage < right - 0.01].max() == pytest.approx(0, abs=1e-9)
    assert found.oracle[-1] == pytest.approx(wrong.mean())
    assert (found.oracle <= found.errors + 1e-9).all()
    # A line on which one class alone comes knows its errors alone.
    alone = risk_coverage(images, np.array([0.0, 1.0, 0.0]))
    assert alone.errors[-1] == pytest.approx(wrong[images.target == 1].mean())


def test_calibrations_that_tell_nothing() -> None:
    with pytest.raises(ConfigError, match="no defect"):
        tune(scored((50, 0, 0)), NAMES, "good")
    unlabelled = scored()
    unlabelled.target[:] = -1
    with pytest.raises(DataError, match="No image of the calibration has a label"):
        tune(unlabelled, NAMES, "good")


def test_one_defect_promises_nothing_and_nothing_passes() -> None:
    found = tune(scored((50, 1, 0)), NAMES, "good")
    assert found.policy.release_above == math.inf
    assert found.expected.overkill == 1.0
    assert "No image of open is in the calibration" in " ".join(found.notes)
    assert found.sentences()[:3] == [
        (
            "No limit is promised for escapes of bridge: it has too few images (0 of 1 image in "
            "the calibration)."
        ),
        (
            "No limit is promised for escapes of open: it has too few images (0 of 0 images in the "
            "calibration)."
        ),
        (
            "No image is released, since no escape limit is promised: a limit of 2% for "
            "one class takes 173 images of it, none of them released."
        ),
    ]
    purity = tune(scored((50, 1, 0)), NAMES, "good", Limits.from_dict({"purity": 0.9}))
    assert "takes 228 images of it" in " ".join(purity.sentences())  # beside two of purity
    assert "No image is released" not in " ".join(tune(scored(), NAMES, "good").sentences())


def test_what_a_calibration_does_not_hold_is_not_held_for_done() -> None:
    """On a line of 90 % normal images, of which the calibration holds none."""
    limits = Limits.from_dict({"line_mix": {"good": 90, "bridge": 5, "open": 5}})
    found = tune(scored((0, 300, 0)), NAMES, "good", limits)
    assert found.expected.overkill is None
    shares = [found.expected.share(action) for action in (RELEASE, AUTOMATIC, REVIEW, UNKNOWN)]
    assert sum(shares) == pytest.approx(1)
    assert shares[1] > 0.9
    assert found.expected.escape == found.expected.by_class[1, RELEASE]
    assert json.dumps(found.expected.to_dict(NAMES), allow_nan=False)


def test_eight_images() -> None:
    found = tune(scored((4, 2, 2)), NAMES, "good")
    assert found.facts["images"] == 8
    assert found.expected.share(RELEASE) == 0.0
    assert "No image is released, since no escape limit is promised" in " ".join(found.sentences())


@pytest.mark.parametrize("limit", [0, 0.0])
def test_a_limit_of_nothing_is_refused(limit: float) -> None:
    told = r"bridge 0\.00% \(400 images: no number promises 0; these promise at most 1\.0%\); open"
    with pytest.raises(ConfigError, match=told):
        tune(scored(), NAMES, "good", Limits(escape=PerClass(limit)))
    found = tune(scored(), NAMES, "good", Limits.from_dict({"purity": 1}))
    assert found.policy.automatic_above[1:].tolist() == [math.inf, math.inf]
    assert "purity of open: no number of images shows a purity of 100%" in " ".join(
        found.sentences()
    )


def test_false_alarms_of_the_unknown() -> None:
    images = replace(scored(600), unknown=np.random.default_rng(5).random(1800))
    asked = {"escape": 0.05, "unknown_false_alarm": {"overall": 0.02, "tail": 0.06}}
    tail = np.array([False, False, True])
    found = tune(images, NAMES, "good", Limits.from_dict(asked), tail=tail)
    overall, of_tail = found.promises[2:]
    assert (overall.kind, of_tail.kind) == ("unknown_false_alarm", "tail_false_alarm")
    assert found.facts["risk"] == risk_of_each(0.95, promises=4)
    above = found.policy.unknown_above
    assert above is not None
    assert (images.unknown > above).sum() == overall.beyond <= overall.allowed
    assert (images.unknown[images.target == 2] > above).sum() == of_tail.beyond
    assert (found.expected.by_class[:, UNKNOWN] > 0).any()
    assert "At most 2.00% of the known images on the line is called unknown" in " ".join(
        found.sentences()
    )
    with pytest.raises(ConfigError, match="a score of how strange each image is"):
        tune(scored(), NAMES, "good", Limits.from_dict(asked), tail=tail)
    few = replace(scored(30), unknown=np.zeros(90))
    asked["escape"] = "smallest"
    with pytest.raises(
        ConfigError, match=r"unknown_false_alarm 2\.00% overall \(90 images: it takes"
    ):
        tune(few, NAMES, "good", Limits.from_dict(asked), tail=tail)


def test_scores_that_are_no_numbers_go_to_a_person() -> None:
    images = scored()
    images.logits[3] = math.nan
    found = tune(images, NAMES, "good")
    assert "1 image of the calibration has no finite score" in " ".join(found.notes)
    assert found.policy.act(images.logits).reasons()[3] == "not_finite"


def test_groups_are_told_beside_their_images() -> None:
    whole = scored((50, 60, 60))
    boards = [str(place // 2) for place in range(len(whole))]
    found = tune(replace(whole, groups=boards), NAMES, "good", unit="board")
    number = len(replace(whole, groups=boards).counted())
    assert found.calibrated_on() == (
        f"{number} boards (170 labelled images: one of each board and class counts)"
    )
    assert tune(whole, NAMES, "good").calibrated_on() == "170 labelled images"
