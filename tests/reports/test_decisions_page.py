from __future__ import annotations

import html
from html.parser import HTMLParser

import numpy as np
import pytest

from recame.decisions.limits import Limits
from recame.decisions.scored import Scored
from recame.decisions.tune import tune
from recame.decisions.tuned import Tuned
from recame.reports.decisions_page import decisions_page

NAMES = ("good", "bridge", "<b>open</b>")


def scored(counts: tuple[int, int, int] = (300, 300, 300)) -> Scored:
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1, 2], counts)
    logits = 3.0 * np.eye(3)[target] + rng.normal(0, 1, (len(target), 3))
    return Scored(logits, target, [f"{n}.png" for n in range(len(target))])


def page(tuned: Tuned, images: Scored, limits: Limits) -> str:
    return decisions_page(tuned, images, limits, name="run <1>", told="calibrate")


class Words(HTMLParser):
    """The page's text, without what its figures hold."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))


def words(document: str) -> str:
    parser = Words()
    parser.feed(document)
    return " ".join(text for text in parser.texts if text)


def test_the_page_tells_what_is_promised_and_what_it_costs() -> None:
    asked = {"escape": 0.05, "overkill": 0.01, "signed_by": "A. <Engineer>"}
    limits = Limits.from_dict(asked)
    images = scored()
    tuned = tune(images, NAMES, "good", limits)
    document = page(tuned, images, limits)
    told = words(document)
    for sentence in tuned.sentences():
        if "hold together" not in sentence:
            assert sentence in told
    assert "Signed by A. <Engineer>." in told
    assert f"{tuned.expected.overkill:.1%}" in told
    assert "2 limits hold together with 95% confidence." in told
    assert "which chose nothing; tuning number 1 on these" in told
    assert document.count("<img") == 3
    assert "<b>open" not in document
    assert html.escape("<b>open</b>") in document
    row = tuned.frontier[6]
    assert f"{row['escape_limit']:.1%} 2 of 2 {row['normal_released']:.1%}" in told


def test_what_more_images_would_promise() -> None:
    images = scored((100, 90, 90))
    tuned = tune(images, NAMES, "good")
    told = words(page(tuned, images, Limits()))
    risk = tuned.facts["risk"]
    needed = int(np.ceil(np.log(risk) / np.log(0.98)))
    assert f"bridge 90 {tuned.promises[0].limit:.1%} promised {needed - 90:,} more" in told


@pytest.mark.parametrize("normal", [None, "good"])
def test_pages_of_little(normal: str | None) -> None:
    images = scored((20, 1, 0))
    tuned = tune(images, NAMES, normal)
    told = words(page(tuned, images, Limits()))
    assert "Nothing is promised." in told
    assert ("No escape limit was fitted." in told) == (normal is None)
    assert ("Other limits" in told) == (normal is not None)
