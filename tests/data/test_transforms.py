import pytest
import torch

from recame.config import AugmentConfig
from recame.data.transforms import Augment, Mix, dihedral_view, dihedral_views
from recame.errors import ConfigError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(num=12, channels=3, height=16, width=16):
    return torch.rand(num, channels, height, width, generator=generator(7))


SETTINGS = [
    {"horizontal_flip": True, "vertical_flip": True, "quarter_turns": True},
    {"shift": 0.2},
    {"shift": 0.1, "scale": 0.2, "rotate_deg": 20.0},
    {"brightness": 0.2, "contrast": 0.3},
    {"blur": 0.5},
    {"rand_augment": 2, "rand_augment_magnitude": 15},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("channels", "width"), [(1, 16), (3, 16), (3, 24)])
def test_deterministic_in_range_and_leaves_the_input(settings, channels, width):
    images = batch(channels=channels, width=width)
    before = images.clone()
    first = Augment(**settings)(images, generator(1))
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0.0
    assert first.max() <= 1.0
    assert torch.equal(first, Augment(**settings)(images, generator(1)))
    assert not torch.equal(first, Augment(**settings)(images, generator(2)))
    alike = images[:1].expand(12, -1, -1, -1)
    out = Augment(**settings)(alike, generator(1))
    assert not torch.equal(out, out[:1].expand_as(out))


def test_fields_mirror_the_settings():
    known = set(AugmentConfig.model_fields) - {"mixup", "cutmix", "symmetry"}
    known |= {"horizontal_flip", "vertical_flip", "quarter_turns"}  # what a symmetry means here
    known |= {"pieces"}  # of the images, not of their changes
    assert set(Augment.__dataclass_fields__) == known


def test_nothing_asked_changes_nothing():
    images = batch()
    assert Augment()(images, generator()) is images


def symmetries(images, num_views):
    return dihedral_views(images, num_views).flatten(2)


def test_flips_and_turns_give_each_symmetry_alike():
    images = batch(num=1, channels=2, height=5, width=5).expand(800, -1, -1, -1)
    out = Augment(horizontal_flip=True, vertical_flip=True, quarter_turns=True)(images, generator())
    same = (out.flatten(1)[:, None] == symmetries(images[:1], 8)[:, 0][None]).all(2)
    assert (same.sum(1) == 1).all()
    assert same.sum(0).min() > 60


def test_turns_alone_are_rotations():
    images = batch(num=1, channels=1, height=4, width=4).expand(60, -1, -1, -1)
    out = Augment(quarter_turns=True)(images, generator())
    turned = torch.stack([images[0].rot90(k, (-2, -1)) for k in range(4)])
    same = (out[:, None] == turned[None]).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    assert same.any(0).all()


def test_rectangles_get_half_turns_only():
    images = batch(num=1, channels=1, height=4, width=6).expand(40, -1, -1, -1)
    out = Augment(quarter_turns=True)(images, generator())
    half = images.flip(-1, -2)
    same = torch.stack([(out == view).flatten(1).all(1) for view in (images, half)])
    assert (same.sum(0) == 1).all()
    assert same.any(1).all()


def test_shift_moves_whole_pixels_and_mirrors_the_border():
    images = torch.arange(10.0).expand(64, 1, 10, 10) / 10
    out = Augment(shift=0.2)(images, generator())
    rows = (out[:, 0, 0] * 10).round().long()
    expected = {s: [min(p % 20, 19 - p % 20) for p in range(s, s + 10)] for s in range(-2, 3)}
    found = {int(row[5]) - 5: row.tolist() for row in rows}
    assert found == expected


def test_warp_of_zero_strength_is_the_identity_and_turns_a_rectangle_truly():
    images = batch(height=12, width=20)
    out = Augment(rotate_deg=1e-6)(images, generator())
    torch.testing.assert_close(out, images, atol=1e-4, rtol=0)
    # A centred disc stays a disc under rotation even if the picture is no square.
    y, x = torch.meshgrid(torch.arange(24.0) - 11.5, torch.arange(40.0) - 19.5, indexing="ij")
    disc = ((x**2 + y**2) < 36).float().expand(6, 1, -1, -1)
    out = Augment(rotate_deg=90.0)(disc, generator())
    assert (out - disc)[..., 4:-4, 12:-12].abs().mean() < 0.04


def test_intensity_moves_mean_and_contrast_within_bounds():
    images = 0.4 + 0.2 * batch()
    brighter = Augment(brightness=0.1)(images, generator())
    offset = brighter - images
    torch.testing.assert_close(offset.amax((1, 2, 3)), offset.amin((1, 2, 3)))
    assert offset.abs().max() <= 0.1 + 1e-6
    contrasted = Augment(contrast=0.3)(images, generator())
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), images.mean((1, 2, 3)))
    ratio = contrasted.std((1, 2, 3)) / images.std((1, 2, 3))
    assert ((ratio > 0.69) & (ratio < 1.31)).all()


def test_blur_touches_the_chosen_images_only():
    images = batch(num=40)
    out = Augment(blur=0.5)(images, generator())
    changed = (out != images).flatten(1).any(1)
    assert 8 < int(changed.sum()) < 32
    assert (out[changed].std((1, 2, 3)) < images[changed].std((1, 2, 3))).all()


def test_dihedral_views_are_the_symmetries():
    images = batch(num=2)
    views = dihedral_views(images, 8)
    assert views.shape == (8, *images.shape)
    expected = [images, images.flip(-1), images.flip(-2), images.flip(-1, -2)]
    torch.testing.assert_close(views[:4], torch.stack(expected))
    torch.testing.assert_close(views[4], images.transpose(-1, -2))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert dihedral_views(batch(width=20), 4).shape[0] == 4
    with pytest.raises(ConfigError, match="16 x 20"):
        dihedral_view(batch(width=20), 4)
    with pytest.raises(ConfigError, match="no view 8"):
        dihedral_view(images, 8)


def test_mixup_is_a_convex_combination():
    images = batch()
    mixed, permutation, lam = Mix(mixup=0.8)(images, generator(3))
    assert 0.0 < lam < 1.0
    assert sorted(permutation.tolist()) == list(range(12))
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images[permutation])


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_tells_the_true_area(seed):
    images = torch.arange(12.0).view(12, 1, 1, 1).expand(-1, 1, 10, 14)
    mixed, permutation, lam = Mix(cutmix=1.0)(images, generator(seed))
    row = int((permutation != torch.arange(12)).nonzero()[0])
    own = (mixed[row] == images[row]).float().mean()
    assert float(own) == pytest.approx(lam)


@pytest.mark.parametrize(("height", "width"), [(32, 96), (40, 16)])
@pytest.mark.parametrize("mix", [Mix(mixup=0.4), Mix(cutmix=1.0)])
def test_what_is_not_square_keeps_its_shape(mix, height, width):
    images = batch(height=height, width=width)
    mixed, permutation, lam = mix(images, generator(3))
    assert mixed.shape == images.shape
    own = (mixed == images).all(1).float().mean((1, 2))
    moved = (permutation != torch.arange(len(images))).nonzero().squeeze(1)
    if mix.cutmix:  # the patch has the shares of both sides that lam says
        torch.testing.assert_close(own[moved], torch.full((len(moved),), lam))
    turned = Augment(quarter_turns=True)(images, generator(0))
    halves = torch.stack([images, images.flip(-1, -2)])
    assert (turned[None] == halves).all((2, 3, 4)).any(0).all()
    shifted = Augment(shift=0.1)(images, generator(0))
    assert shifted.shape == images.shape


def test_mix_of_nothing_and_of_both():
    images = batch()
    mixed, permutation, lam = Mix()(images, generator())
    assert mixed is images
    assert permutation.tolist() == list(range(12))
    assert lam == 1.0
    both = Mix(mixup=0.8, cutmix=1.0)
    kinds = set()
    for seed in range(12):
        mixed, _, _ = both(images, generator(seed))
        kinds.add(bool(torch.isin(mixed, images).all()))
        assert torch.equal(mixed, both(images, generator(seed))[0])
    assert kinds == {True, False}
