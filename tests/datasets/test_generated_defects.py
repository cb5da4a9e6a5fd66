from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from recame.datasets.generated import CLASSES, DESIGNS, FINE_CLASSES, SyntheticSpec, render
from recame.datasets.generated.hashing import (
    cell_hash,
    make_keys,
    pixel_noise,
    shuffled,
    smooth_field,
    uniform,
)
from recame.datasets.generated.products import VARIANTS, Shots, make_look

SPEC = SyntheticSpec(num_products=24)
FINE = SyntheticSpec(num_products=24, num_classes=30, fine=True)
REPEATS = 4
GLOBAL = {"line_edge_roughness", "over_etch", "under_etch", "discoloration"}
#: Of the finer classes, those that may change nearly the whole view.
FINE_GLOBAL = {"edge_waves", "edge_ripples", "stain_dark", "stain_bright", "smear"} | {
    f"{etch}_etch_{where}" for etch in ("over", "under") for where in ("local", "everywhere")
}


def rows_of(label: str, num_products: int = 12) -> pd.DataFrame:
    """Images of a class on each product and region, all with the same numbers for every class."""
    places = [
        (f"P{p + 1:02d}", v) for p in range(num_products) for v in VARIANTS for _ in range(REPEATS)
    ]
    return pd.DataFrame(
        {
            "image": [f"images/{p}/{n:06d}.png" for n, (p, _) in enumerate(places)],
            "product": [p for p, _ in places],
            "lot": [f"{p}-L0001" for p, _ in places],
            "cluster": [f"{label}/{p}/{v}" for p, v in places],
            "true_label": label,
            "duplicate_of": "",
            "duplicate_kind": "",
        }
    )


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return render(rows_of("normal"), SPEC).astype(int)


@pytest.mark.parametrize("name", [c.name for c in (*CLASSES[1:], *FINE_CLASSES[1:])])
def test_a_defect_shows_on_every_product_and_region(name: str, clean: np.ndarray):
    # The same scene, light and noise without the defect: what differs is the defect.
    change = np.abs(render(rows_of(name), SPEC).astype(int) - clean)
    # The sensor's noise is below 7 grey levels.
    visible = (change > 14).sum((1, 2))
    assert np.median(visible) >= 12
    assert (visible >= 4).mean() > 0.97
    by_place = visible.reshape(-1, REPEATS).max(1)
    assert by_place.min() >= 6
    if name not in GLOBAL | FINE_GLOBAL:
        assert (change > 0).mean((1, 2)).max() < 0.45
        rows, columns = np.nonzero((change > 14).any(0))
        assert max(np.ptp(rows), np.ptp(columns)) < 64


def test_every_class_has_a_name_a_meaning_and_some_are_critical():
    assert len({c.name for c in CLASSES}) == 14
    assert CLASSES[0].name == "normal"
    assert all(len(c.meaning) > 15 for c in CLASSES)
    critical = {c.name for c in CLASSES if c.critical}
    assert critical == {"bridge", "open", "missing_feature", "crack"}


def test_finer_classes_are_two_kinds_of_each_defect_and_three_more():
    names = [c.name for c in FINE_CLASSES]
    assert len({*names}) == 30
    assert names[0] == "normal"
    # Between the first kind of each and the second.
    assert names[14:17] == ["fibre", "pitting", "smear"]
    assert not {*names[1:]} & {c.name for c in CLASSES}
    assert [c.critical for c in FINE_CLASSES[1:14]] == [c.critical for c in CLASSES[1:]]
    assert [c.critical for c in FINE_CLASSES[17:]] == [c.critical for c in CLASSES[1:]]


@pytest.mark.parametrize("number", range(13), ids=lambda n: CLASSES[n + 1].name)
def test_two_kinds_of_a_defect_can_be_told_apart(number: int):
    # On the same scenes, by more than the sensor's noise, on nearly all of them.
    one, other = (
        render(rows_of(kind.name), FINE).astype(int)
        for kind in (FINE_CLASSES[1 + number], FINE_CLASSES[17 + number])
    )
    assert ((np.abs(one - other) > 14).sum((1, 2)) >= 4).mean() > 0.9


@pytest.mark.parametrize("number", range(24), ids=lambda n: f"P{n + 1:02d}")
def test_sites_lie_where_they_say(number: int):
    design = DESIGNS[number % len(DESIGNS)]
    content = make_keys(5, np.arange(60))
    product, variant = np.full(60, number), np.arange(60) % 3
    nothing = np.zeros(60, np.int64)
    shots = Shots(product, variant, nothing, content, content, content, nothing == 1)
    plane = make_look(shots, colour=False).plane
    sites = design.place(plane)

    def at(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return design.draw(u, v, plane, sites)

    line, gap, body, via = sites
    assert at(line.u, line.v)[0].min() > 0.5
    assert at(gap.u, gap.v)[0].max() < -0.5
    assert at(body.u, body.v)[0].min() > 0.5
    assert at(via.u, via.v)[1].min() > 0.2
    # Metal ends half a width beside the line's centre, and begins on both sides of the gap.
    beside = 0.5 * line.extent + 1
    assert at(line.u + beside * line.dv, line.v - beside * line.du)[0].max() < 0
    for side in (-1, 1):
        reach = side * (0.5 * gap.extent + 0.6)
        assert at(gap.u + reach * gap.du, gap.v + reach * gap.dv)[0].min() > 0
        assert at(gap.u + 0.8 * reach * gap.du, gap.v + 0.8 * reach * gap.dv)[0].max() < 0.4
    # The whole via lies within its extent; a bond ball's wire goes on, toward larger v.
    for du, dv in ((1, 0), (-1, 0), (0, -1)):
        assert at(via.u + via.extent * du, via.v + via.extent * dv)[1].max() < 0.2
    spread = [np.abs(s.u - plane.u).max() for s in sites]
    assert max(spread) < 2.5 * plane.pitch.max()


def test_products_look_different():
    table = rows_of("normal")
    pixels = render(table, SPEC).astype(np.float32)
    # Grey histograms and spectra of unseen images name the product and region.
    spectrum = np.abs(np.fft.rfft2(pixels - pixels.mean((1, 2), keepdims=True)))[:, :24, :24]
    spectrum = np.log1p(spectrum).reshape(len(pixels), -1)
    grey = np.sort(pixels.reshape(len(pixels), -1), 1)[:, ::64]
    features = np.hstack([spectrum, 0.3 * grey])
    place = np.arange(len(table)) // REPEATS
    first = np.arange(len(table)) % REPEATS < REPEATS // 2
    centre = np.stack([features[first & (place == p)].mean(0) for p in range(36)])
    far = ((features[~first][:, None] - centre[None]) ** 2).sum(-1)
    found = far.argmin(1)
    assert (found // 3 == place[~first] // 3).mean() > 0.9


def test_colour_is_more_than_grey():
    spec = SyntheticSpec(num_products=24, colour=True)
    pixels = render(rows_of("normal", 24), spec).astype(int)
    spread = np.ptp(pixels.mean((1, 2)), axis=1).reshape(24, -1).mean(1)
    assert np.median(spread) > 15
    assert spread.max() > 40


def test_hashes_are_uniform_and_independent():
    keys = make_keys(0, np.arange(20_000))
    one, two = uniform(keys, "one")[:, 0, 0], uniform(keys, "two")[:, 0, 0]
    assert one.dtype == np.float32
    assert abs(one.mean() - 0.5) < 0.01
    assert abs(one.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    assert sorted(shuffled(keys, "order")) == list(range(20_000))
    cells = cell_hash(np.uint32([[[3]]]), *np.mgrid[-40:40, -40:40].astype(np.float32))
    assert abs(cells.mean() - 0.5) < 0.01
    assert np.unique(cells).size == 6400


def test_noise_is_white_with_unit_variance():
    noise = pixel_noise(make_keys(1, np.arange(50)), "noise", (64, 64))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.01
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.01


@pytest.mark.parametrize("size", [32, 50, 64])
def test_fields_are_smooth(size: int):
    field = smooth_field(make_keys(2, np.arange(40)), "field", 5, size)
    assert field.shape == (40, size, size)
    assert field.dtype == np.float32
    assert np.abs(field).max() <= 1
    assert field.std() > 0.3
    assert np.abs(np.diff(field, axis=2)).max() < 2 * 1.6 * 5 / size
