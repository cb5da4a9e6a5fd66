import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recame.data.samplers import EpochBatches, class_prior
from recame.datasets.public.cifar import long_tailed_counts
from recame.errors import ConfigError

KINDS = ["instance", "class_balanced", "square_root", "m_per_class"]
TARGETS = np.repeat([0, 1, 3], [80, 18, 2])


def sampler(**options):
    return EpochBatches(**{"targets": TARGETS, "batch_size": 16, "seed": 0, **options})


def epoch(batches, number):
    batches.set_epoch(number)
    return list(batches)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_depends_on_seed_and_number_only(kind):
    batches = sampler(kind=kind)
    third = epoch(batches, 3)
    assert third == epoch(sampler(kind=kind), 3)
    assert third != epoch(batches, 2)
    assert third != epoch(sampler(kind=kind, seed=1), 3)
    assert len(third) == len(batches)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(4, 40),
    st.integers(1, 250),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_length_and_positions(kind, quarter, epoch_size, world_size, number):
    size = 4 * quarter
    options = {"kind": kind, "batch_size": size, "epoch_size": epoch_size}
    try:
        ranks = [sampler(**options, rank=rank, world_size=world_size) for rank in range(world_size)]
    except ConfigError:
        assert epoch_size < size * world_size + 2
        return
    shares = [epoch(batches, number) for batches in ranks]
    assert {len(share) for share in shares} == {len(ranks[0])}
    flat = [i for share in shares for batch in share for i in batch]
    assert 0 <= min(flat) <= max(flat) < len(TARGETS)
    assert all(len(batch) > 1 or epoch_size == 1 for share in shares for batch in share)
    if kind == "instance" and epoch_size <= len(TARGETS) and number == 0:
        assert len(set(flat)) == len(flat)


def test_instance_shows_every_image_once_and_joins_a_last_single_one():
    batches = sampler(kind="instance", batch_size=33)
    shown = epoch(batches, 0)
    assert [len(batch) for batch in shown] == [33, 33, 34]
    assert sorted(i for batch in shown for i in batch) == list(range(100))


def test_short_epochs_go_through_the_whole_set():
    batches = sampler(kind="instance", epoch_size=25)
    seen = [i for number in range(4) for batch in epoch(batches, number) for i in batch]
    assert sorted(seen) == list(range(100))


@pytest.mark.parametrize(
    ("kind", "expected"), [("class_balanced", [34, 33, 33]), ("square_root", [60, 29, 10])]
)
def test_quotas_and_fair_use_of_each_class(kind, expected):
    batches = sampler(kind=kind)
    shown = [np.concatenate(epoch(batches, number)) for number in range(40)]
    counts = np.bincount(TARGETS[shown[0]], minlength=4)
    assert np.abs(counts[[0, 1, 3]] - expected).max() <= 1
    share = class_prior(np.bincount(TARGETS), kind)
    np.testing.assert_allclose(counts / 100, share, atol=0.01)
    used = np.bincount(np.concatenate(shown), minlength=100)
    for c in (0, 1, 3):
        assert np.ptp(used[c == TARGETS]) <= 1


def test_m_per_class():
    batches = sampler(kind="m_per_class", batch_size=8, samples_per_class=4)
    shown = epoch(batches, 0)
    assert len(shown) == 12
    for batch in shown:
        classes, counts = np.unique(TARGETS[batch], return_counts=True)
        assert len(classes) == 2
        assert (counts == 4).all()
    assert {int(c) for batch in shown for c in TARGETS[batch]} == {0, 1, 3}
    few = epoch(sampler(kind="m_per_class", batch_size=32, samples_per_class=4), 0)
    assert np.bincount(TARGETS[few[0]]).tolist() == [10, 10, 0, 10]
    with pytest.raises(ConfigError, match=r"not a multiple of finetune\.samples_per_class=4"):
        sampler(kind="m_per_class", batch_size=10)


def test_processes_share_an_epoch_without_overlap():
    shares = [
        epoch(sampler(kind="instance", rank=rank, world_size=2, batch_size=10), 1)
        for rank in (0, 1)
    ]
    flat = [i for share in shares for batch in share for i in batch]
    assert [len(share) for share in shares] == [5, 5]
    assert sorted(flat) == list(range(100))
    with pytest.raises(ConfigError, match="fewer than two for each of 51 processes"):
        sampler(kind="instance", world_size=51)


@pytest.mark.parametrize("kind", ["instance", "class_balanced", "square_root"])
@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("epoch_size", [97, 100, 101])
def test_processes_show_together_what_one_would(kind, world_size, epoch_size):
    options = {"kind": kind, "epoch_size": epoch_size, "targets": np.repeat([0, 1, 3], [81, 18, 2])}
    alone = epoch(sampler(**options, batch_size=6 * world_size), 2)
    ranks = [
        sampler(**options, batch_size=6, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [epoch(batches, 2) for batches in ranks]
    together = [[i for part in parts for i in part] for parts in zip(*shares, strict=True)]
    # A rest of less than two images each joins the step before; alone, a rest of one does.
    assert [i for step in together for i in step] == [i for step in alone for i in step]
    assert together[:-1] == alone[: len(together) - 1]
    for number, step in enumerate(together):
        weights = [batches.weight(number) for batches in ranks]
        sizes = [len(share[number]) for share in shares]
        assert weights == [size * world_size / len(step) for size in sizes]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2


def test_m_per_class_of_processes():
    shares = [
        epoch(sampler(kind="m_per_class", batch_size=8, rank=rank, world_size=2), 0)
        for rank in (0, 1)
    ]
    assert [len(share) for share in shares] == [6, 6]
    assert shares[0] != shares[1]
    for batch in (*shares[0], *shares[1]):
        assert np.unique(TARGETS[batch], return_counts=True)[1].tolist() == [4, 4]


def test_every_class_is_shown_when_there_is_room():
    targets = np.repeat(np.arange(30), [2000, *[1] * 29])
    batches = EpochBatches(targets, kind="instance", batch_size=50, seed=0, epoch_size=100)
    assert len(np.concatenate(list(batches))) == 100
    balanced = EpochBatches(targets, kind="square_root", batch_size=50, seed=0, epoch_size=60)
    assert set(targets[np.concatenate(list(balanced))]) == set(range(30))


@pytest.mark.parametrize("total", [1000, 1001, 1020, 1040, 1080])
def test_every_class_is_shown_when_there_is_hardly_room(total):
    counts = np.geomspace(1280, 5, 1000).astype(int)
    targets = np.repeat(np.arange(1000), counts)
    batches = EpochBatches(targets, kind="square_root", batch_size=50, seed=0, epoch_size=total)
    shown = np.concatenate(epoch(batches, 0))
    assert len(set(targets[shown])) == 1000


def test_short_epochs_leave_out_no_class_for_good():
    counts = np.geomspace(500, 5, 300).astype(int)
    targets = np.repeat(np.arange(300), counts)
    batches = EpochBatches(targets, kind="square_root", batch_size=50, seed=0, epoch_size=120)
    shown = [np.concatenate(epoch(batches, number)) for number in range(30)]
    assert all(len(images) == 120 for images in shown)
    per_class = np.bincount(targets[np.concatenate(shown)], minlength=300)
    expected = class_prior(counts, "square_root") * 120 * 30
    assert (per_class >= 1).all()
    assert np.abs(per_class - expected).max() < 3
    used = np.bincount(np.concatenate(shown), minlength=len(targets))
    assert all(np.ptp(used[c == targets]) <= 1 for c in range(300))
    np.testing.assert_array_equal(shown[7], np.concatenate(epoch(batches, 7)))


def test_class_prior():
    counts = np.array([90, 10, 0])
    np.testing.assert_allclose(class_prior(counts, "instance"), [0.9, 0.1, 0.0])
    np.testing.assert_allclose(class_prior(counts, "square_root"), [0.75, 0.25, 0.0])
    np.testing.assert_allclose(class_prior(counts, "class_balanced"), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(class_prior(counts, "m_per_class"), [0.5, 0.5, 0.0])


def test_long_tailed_counts_are_those_of_the_published_sets():
    cifar10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tailed_counts(10, 5000, 100).tolist() == cifar10
    assert long_tailed_counts(10, 5000, 50)[-1] == 100
    assert long_tailed_counts(100, 500, 100).sum() == 10847
    assert long_tailed_counts(3, 7, 1).tolist() == [7, 7, 7]
    with pytest.raises(ConfigError, match="imbalance of 1"):
        long_tailed_counts(3, 7, 0.5)
