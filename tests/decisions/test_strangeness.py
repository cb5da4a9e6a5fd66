from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from sklearn.covariance import oas, shrunk_covariance
from sklearn.neighbors import NearestNeighbors

from recame.decisions.feature_strangeness import (
    MOST_NUMBERS,
    Mahalanobis,
    NearestNeighbour,
    RelativeMahalanobis,
    VirtualLogit,
)
from recame.decisions.spectrum import shrunk_precision
from recame.decisions.strangeness import Disagreement, Energy, MaxLogit, MaxSoftmax, unit_rows
from recame.decisions.unknown import SCORERS, fit_scorer, scorer_of_arrays
from recame.errors import CheckpointError, ConfigError, DataError
from recame.metrics.statistics import area_under_roc

OF_FEATURES = ("knn", "vim", "mahalanobis", "relative_mahalanobis")
COUNTS = (60, 25, 8, 3, 1)


class Lot(NamedTuple):
    features: np.ndarray
    logits: np.ndarray
    target: np.ndarray


def lot(
    counts: tuple[int, ...] = COUNTS, *, experts: int = 2, width: int = 12, seed: int = 0
) -> Lot:
    """Gaussian classes about means that do not depend on the counts; logits linear in features."""
    means = np.random.default_rng(99).normal(size=(len(counts), experts, width)) * 2
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(len(counts)), counts)
    features = means[target] + rng.normal(size=(len(target), experts, width))
    logits = np.einsum("ned,ced->nec", features, means) / width + 1.5
    return Lot(features.astype(np.float32), logits.astype(np.float32), target)


def strangers(num: int, *, experts: int = 2, width: int = 12, seed: int = 5) -> Lot:
    """Images of a class that the lots do not have."""
    means = np.random.default_rng(99).normal(size=(len(COUNTS), experts, width)) * 2
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(experts, width)) * 2 + rng.normal(size=(num, experts, width))
    logits = np.einsum("ned,ced->nec", features, means) / width + 1.5
    return Lot(features.astype(np.float32), logits.astype(np.float32), np.full(num, -1))


def unit(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    each = wide / np.linalg.norm(wide, axis=-1, keepdims=True) / np.sqrt(wide.shape[1])
    return each.reshape(len(wide), -1)


def test_scorers_of_logits_are_their_formulas() -> None:
    _, logits, target = lot()
    mean = logits.astype(np.float64).mean(1)
    expected = {
        "max_softmax": -np.log(softmax(mean, 1).max(1)),
        "max_logit": -mean.max(1),
        "energy": -logsumexp(mean, 1),
        "disagreement": np.mean(
            [
                entropy(softmax(logits[:, e].astype(np.float64), 1), mixed, axis=1)
                for mixed in [softmax(logits.astype(np.float64), 2).mean(1)]
                for e in range(2)
            ],
            axis=0,
        ),
    }
    for name, values in expected.items():
        found = fit_scorer(name, None, logits, target).score(None, logits)
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-9, err_msg=name)


def test_certain_answers_are_told_apart_by_the_softmax() -> None:
    logits = np.array([[60.0, 0.0], [80.0, 0.0]], np.float32)
    first, second = MaxSoftmax().score(None, logits)
    assert first > second > 0


def test_nearest_neighbour_is_scikit_learns() -> None:
    train, test = lot(), lot((20,) * 5, seed=1)
    for k in (1, 4):
        scorer = NearestNeighbour.fit(*train, k=k)
        search = NearestNeighbors(n_neighbors=k).fit(unit(train.features))
        distance = search.kneighbors(unit(test.features))[0][:, -1]
        found = scorer.score(test.features, test.logits)
        np.testing.assert_allclose(found, distance**2 / 2, rtol=1e-4, atol=1e-6)


def test_memory_takes_of_each_class_what_its_share_allows() -> None:
    train = lot()
    width = train.features[0].size
    kept = NearestNeighbour.fit(*train, most_numbers=26 * width).memory
    whole = unit_rows(train.features)
    same = (kept[:, None] == whole[None]).all(2)
    assert (same.sum(1) == 1).all()
    found = np.bincount(train.target[same.argmax(1)])
    # 1 and 3 are all there are; 22 for three classes: 7 each, and one more for one of them.
    assert sorted(found) == [1, 3, 7, 7, 8]
    assert len(NearestNeighbour.fit(*train, most_numbers=0).memory) == len(COUNTS)
    other = NearestNeighbour.fit(*train, most_numbers=26 * width, seed=1).memory
    assert not np.array_equal(kept, other)


@pytest.mark.parametrize("width", [5, 40])  # more images than features, and fewer
def test_virtual_logit_is_its_equations(width: int) -> None:
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(4, width)), rng.normal(size=4) + 2
    x = rng.normal(size=(30, width)) * np.linspace(3, 0.2, width) + 1
    logits = x @ weight.T + bias
    found = VirtualLogit.fit(x.astype(np.float32), logits.astype(np.float32), np.arange(30) % 4)
    if width < 30:
        np.testing.assert_allclose(found.origin, -np.linalg.pinv(weight) @ bias, atol=2e-3)
    z = x - found.origin
    directions = np.linalg.eigh(z.T @ z)[1][:, : width - min(width // 2, 15)]
    residual = np.linalg.norm(z @ directions @ directions.T, axis=1)
    alpha = logits.max(1).sum() / residual.sum()
    new = rng.normal(size=(9, width))
    said = new @ weight.T + bias
    left = np.linalg.norm((new - found.origin) @ directions, axis=1)
    virtual = softmax(np.concatenate([said, alpha * left[:, None]], 1), 1)[:, -1]
    scores = found.score(new.astype(np.float32), said.astype(np.float32))
    np.testing.assert_allclose(scores, np.log(virtual / (1 - virtual)), rtol=2e-3, atol=2e-3)


def test_shrunk_precision_is_scikit_learns_oas() -> None:
    x = np.random.default_rng(0).normal(size=(25, 40)) * np.linspace(1, 0.1, 40)
    rows = ((x - x.mean(0)) / np.sqrt(25)).astype(np.float32)
    found = shrunk_precision(rows, 25, 40)
    covariance, _ = oas(x)
    np.testing.assert_allclose(
        found.times(np.eye(40)), np.linalg.inv(covariance), rtol=1e-3, atol=1e-2
    )


def reference_mahalanobis(train: Lot, features: np.ndarray, most: int) -> np.ndarray:
    """With whole matrices and loops over the classes."""
    x, counts = unit(train.features), np.bincount(train.target)
    width = x.shape[1]
    means = np.stack([x[train.target == c].mean(0) for c in range(len(counts))])
    many = [c for c, n in enumerate(counts) if n > 1]
    root = np.sqrt(counts[many] - 1)
    covariance = (
        sum(r * np.cov(x[train.target == c].T) for r, c in zip(root, many, strict=True))
        / root.sum()
    )
    values, vectors = np.linalg.eigh(covariance)
    values[:-most] = values[:-most].mean() if most < width else 0
    bounded = (vectors * values) @ vectors.T
    images, mu = root.sum() ** 2 / len(many), np.trace(covariance) / width
    alpha = (covariance**2).mean()
    shrinkage = (alpha + mu**2) / ((images + 1) * (alpha - mu**2 / width))
    inverse = np.linalg.inv(shrunk_covariance(bounded, min(1, shrinkage)))
    centre = means.mean(0)
    scatter = ((means - centre) ** 2).sum() / (len(counts) - 1)
    between = scatter - np.trace(covariance) * (1 / counts).mean()
    distances = []
    for mean, n in zip(means, counts, strict=True):
        shrunk = centre + n * between / (n * between + np.trace(covariance)) * (mean - centre)
        z = unit(features) - shrunk
        distances.append(np.einsum("nd,de,ne->n", z, inverse, z))
    return np.min(distances, 0)


@pytest.mark.parametrize(
    ("width", "most"),
    [(6, 12), (6, 4), (100, 200), (100, 20)],  # in full and bounded, D < N and D > N
)
def test_mahalanobis_is_its_formula(width: int, most: int) -> None:
    train, test = lot(width=width), lot((4,) * 5, width=width, seed=1)
    found = Mahalanobis.fit(*train, most_numbers=most * 2 * width)
    assert len(found.directions) <= most
    expected = reference_mahalanobis(train, test.features, most)
    np.testing.assert_allclose(found.score(test.features, test.logits), expected, rtol=2e-3)


def test_relative_mahalanobis_subtracts_the_distance_from_all_together() -> None:
    train, test = lot(), lot((4,) * 5, seed=1)
    relative = RelativeMahalanobis.fit(*train).score(test.features, test.logits)
    alone = Mahalanobis.fit(*train).score(test.features, test.logits)
    x, counts = unit(train.features), np.bincount(train.target)
    means = np.stack([x[train.target == c].mean(0) for c in range(len(counts))])
    root = np.sqrt(counts)
    z = x - means.mean(0)
    weight = (1 / root / root.sum())[train.target]
    covariance = (z * weight[:, None]).T @ z
    images, width = root.sum() ** 2 / len(counts), x.shape[1]
    alpha, mu = (covariance**2).mean(), np.trace(covariance) / width
    shrinkage = min(1, (alpha + mu**2) / ((images + 1) * (alpha - mu**2 / width)))
    inverse = np.linalg.inv(shrunk_covariance(covariance, shrinkage))
    other = unit(test.features) - means.mean(0)
    expected = alone - np.einsum("nd,de,ne->n", other, inverse, other)
    np.testing.assert_allclose(relative, expected, rtol=2e-3, atol=2e-2)


def test_the_head_does_not_decide_the_covariance_alone() -> None:
    """The tail spreads along another direction than the head; ten thousand images change little."""

    def spread(head: int) -> np.ndarray:
        rng = np.random.default_rng(1)
        scale = np.full((head + 30, 1, 3), 0.01)
        scale[:head, :, 1] = scale[head:, :, 2] = 0.2
        target = np.repeat([0, 1], [head, 30])
        x = (
            np.array([1.0, 0, 0]) * (1 - 2 * target[:, None, None])
            + rng.normal(size=scale.shape) * scale
        )
        scorer = Mahalanobis.fit(x.astype(np.float32), np.zeros((len(x), 1, 2), np.float32), target)
        new = np.array([[[1.0, 0.3, 0]], [[1.0, 0, 0.3]]], np.float32)
        return scorer.score(new, np.zeros((2, 1, 2), np.float32))

    along_head, along_tail = spread(3000)
    assert along_tail / along_head < 15  # by the images' numbers the ratio would be near 100


@pytest.mark.parametrize("name", OF_FEATURES)
def test_finds_a_class_that_no_one_has_shown(name: str) -> None:
    train, known, new = lot(), lot((30,) * 5, seed=1), strangers(60)
    scorer = fit_scorer(name, *train)
    area = area_under_roc(scorer.score(*known[:2]), scorer.score(*new[:2]))
    assert area is not None
    assert area > 0.9


@pytest.mark.parametrize("name", SCORERS)
def test_what_is_no_number_is_the_strangest(name: str) -> None:
    train = lot()
    scorer = fit_scorer(name, *train)
    features, logits = train.features[:6].copy(), train.logits[:6].copy()
    features[0, 1, 3], features[1, 0, 0], features[2] = np.nan, np.inf, 1e30
    logits[3, 0, 1], logits[4, 1] = np.nan, -np.inf
    found = scorer.score(features, logits)
    assert np.isinf(found[:5]).all()
    assert (found[:5] > 0).all()
    assert np.isfinite(found[5])
    alone = scorer.score(train.features[5:6], train.logits[5:6])
    assert found[5] == pytest.approx(alone[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", SCORERS)
def test_training_images_that_are_no_numbers_or_have_no_class_are_left_out(name: str) -> None:
    train = lot()
    features, logits, target = (np.concatenate([part, part[:3]]) for part in train)
    features[-1], logits[-2], target[-3] = np.nan, np.inf, -1
    scorer, clean = fit_scorer(name, features, logits, target), fit_scorer(name, *train)
    for array, other in zip(scorer.to_arrays().values(), clean.to_arrays().values(), strict=True):
        if name != "knn":  # which draws anew of another number of images
            np.testing.assert_array_equal(array, other)
    assert np.isfinite(scorer.score(*train[:2])).all()


@pytest.mark.parametrize(
    "counts",
    [(1,), (1, 1, 1), (5, 0, 1), (2, 0, 0, 2), (40,)],
    ids=["one image", "an image a class", "a class without", "two classes without", "one class"],
)
@pytest.mark.parametrize("width", [3, 50])
@pytest.mark.parametrize("name", SCORERS)
def test_few_images(name: str, width: int, counts: tuple[int, ...]) -> None:
    train = lot(counts, width=width)
    scorer = fit_scorer(name, *train)
    own = scorer.score(train.features, train.logits)
    assert np.isfinite(own).all()
    if name in ("knn", "mahalanobis"):
        away = scorer.score(-train.features, train.logits)
        assert (away > own).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("name", OF_FEATURES)
def test_constant_features(name: str, value: float) -> None:
    logits, target = np.ones((20, 2), np.float32), np.arange(20) % 2
    scorer = fit_scorer(name, np.full((20, 7), value, np.float32), logits, target)
    same = scorer.score(np.full((1, 7), value, np.float32), logits[:1])
    other = scorer.score(np.array([[1, -1, 1, -1, 1, -1, 1]], np.float32), logits[:1])
    assert np.isfinite([*same, *other]).all()
    if (name, value) not in {("knn", 0.0), ("relative_mahalanobis", 0.0)}:  # has no direction
        assert other[0] > same[0] or name == "relative_mahalanobis"


@pytest.mark.parametrize("name", SCORERS)
def test_scores_do_not_depend_on_names_numbers_or_company(name: str) -> None:
    train, test = lot(), lot((3,) * 5, seed=1)
    scorer = fit_scorer(name, *train)
    found = scorer.score(test.features, test.logits)
    relabelled = fit_scorer(name, train.features, train.logits, 7 - train.target)
    turned = fit_scorer(name, train.features[:, ::-1], train.logits[:, ::-1], train.target)
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(relabelled.score(test.features, test.logits), found, **close)
    by_turned = turned.score(test.features[:, ::-1], test.logits[:, ::-1])
    np.testing.assert_allclose(by_turned, found, **close)
    single = [scorer.score(test.features[i : i + 1], test.logits[i : i + 1])[0] for i in range(15)]
    np.testing.assert_allclose(single, found, **close)
    many = scorer.score(np.tile(test.features, (100, 1, 1)), np.tile(test.logits, (100, 1, 1)))
    np.testing.assert_allclose(many, np.tile(found, 100), **close)


@pytest.mark.parametrize("name", ["knn", "mahalanobis", "relative_mahalanobis"])
def test_the_length_of_features_of_an_image_says_nothing(name: str) -> None:
    train, test = lot(), lot((3,) * 5, seed=1)
    length = np.random.default_rng(0).uniform(0.1, 10, (len(test.target), 2, 1)).astype(np.float32)
    scorer = fit_scorer(name, *train)
    np.testing.assert_allclose(
        scorer.score(test.features * length, test.logits),
        scorer.score(test.features, test.logits),
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_unit_of_features_says_nothing_to_the_virtual_logit() -> None:
    train, test = lot(), lot((3,) * 5, seed=1)
    found, scaled = VirtualLogit.fit(*train), VirtualLogit.fit(50 * train.features, *train[1:])
    np.testing.assert_allclose(
        scaled.score(50 * test.features, test.logits),
        found.score(test.features, test.logits),
        rtol=1e-3,
    )


def test_probabilities_ignore_what_all_logits_share() -> None:
    _, logits, _ = lot()
    for scorer in (MaxSoftmax(), Disagreement()):
        found = scorer.score(None, logits)
        np.testing.assert_allclose(scorer.score(None, logits + 3), found, atol=1e-5)
    np.testing.assert_allclose(Energy().score(None, logits + 3), Energy().score(None, logits) - 3)
    np.testing.assert_allclose(
        MaxLogit().score(None, logits + 3), MaxLogit().score(None, logits) - 3, rtol=1e-5
    )


def test_experts_that_agree_do_not_disagree() -> None:
    logits = np.repeat(lot().logits[:, :1], 3, 1)
    np.testing.assert_allclose(Disagreement().score(None, logits), 0, atol=1e-12)


@pytest.mark.parametrize("name", SCORERS)
def test_kept_arrays_give_the_same_scores_to_the_bit(name: str) -> None:
    train, test = lot(), lot((3,) * 5, seed=1)
    scorer = fit_scorer(name, *train)
    file = io.BytesIO()
    np.savez(file, **scorer.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as kept:
        read = scorer_of_arrays(name, dict(kept))
    np.testing.assert_array_equal(
        read.score(test.features, test.logits), scorer.score(test.features, test.logits)
    )
    for array in scorer.to_arrays().values():
        assert array.dtype in (np.float32, np.int64)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_memory_is_bounded(name: str) -> None:
    train = lot((150, 60, 30, 10, 1), width=1500)
    width = train.features[0].size
    scorer = fit_scorer(name, *train)
    assert scorer.num_bytes <= 4 * (MOST_NUMBERS + (len(COUNTS) + 2) * width + 100)
    assert scorer.num_bytes > 1_500_000


def test_damaged_arrays_are_refused() -> None:
    arrays = Mahalanobis.fit(*lot()).to_arrays()
    for changed in (
        {**arrays, "centre": arrays["centre"][:-1]},
        {**arrays, "centre": arrays["centre"] * np.nan},
        {**arrays, "scale": arrays["offsets"]},
        {**arrays, "more": arrays["offsets"]},
        {key: value for key, value in arrays.items() if key != "scale"},
        {**arrays, "centre": arrays["centre"].astype(str)},
    ):
        with pytest.raises(CheckpointError, match="'mahalanobis' are"):
            scorer_of_arrays("mahalanobis", changed)
    with pytest.raises(CheckpointError, match="'of_tomorrow', which this version"):
        scorer_of_arrays("of_tomorrow", arrays)


def test_what_does_not_belong_together_is_refused() -> None:
    features, logits, target = lot()
    scorer = Mahalanobis.fit(features, logits, target)
    with pytest.raises(
        DataError, match="length 12, but the scorer 'mahalanobis' was fitted to length 24"
    ):
        scorer.score(features[:, :1], logits)
    with pytest.raises(DataError, match="length 0"):
        scorer.score(None, logits)
    with pytest.raises(DataError, match="do not fit each other"):
        scorer.score(features[:-1], logits)
    with pytest.raises(DataError, match="needs features, and there are none"):
        Mahalanobis.fit(None, logits, target)
    with pytest.raises(DataError, match="96 targets"):
        Energy.fit(features, logits, target[:-1])
    with pytest.raises(DataError, match="None of 97 training images"):
        Mahalanobis.fit(features, logits, np.full(97, -1))
    with pytest.raises(DataError, match="from one expert"):
        Disagreement.fit(None, logits[:, 0], target)
    with pytest.raises(ConfigError, match="no method 'odin'"):
        fit_scorer("odin", features, logits, target)
