from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recame.errors import ConfigError
from recame.models import RegionalChannelAttention, make_attention, regional_gates
from recame.models.regional_attention import apply_gates, region_bounds

GOLDEN = Path(__file__).parents[1] / "golden" / "recame_reference.npz"


@pytest.mark.parametrize("case", ["even", "odd", "rect", "tiny"])
def test_golden(case: str) -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        value = {
            k.removeprefix(f"rca_{case}_"): torch.from_numpy(file[k])
            for k in file.files
            if k.startswith(f"rca_{case}_")
        }
    attention = RegionalChannelAttention(value["x"].shape[1])
    attention.load_state_dict(
        {
            f"{fc}.{part}": value[f"{fc}_{part}"]
            for fc in ("fc1", "fc2")
            for part in ("weight", "bias")
        }
    )
    x = value["x"].requires_grad_()
    y = attention(x)
    y.backward(value["grad_y"])
    torch.testing.assert_close(y, value["y"], rtol=1e-4, atol=1e-6)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, value["grad_x"], rtol=1e-4, atol=1e-6)


def plain_loop(attention: RegionalChannelAttention, x: torch.Tensor) -> torch.Tensor:
    """The definition, region by region; empty regions are passed over."""
    y = torch.zeros_like(x)
    height, width = x.shape[2:]
    num_rows, num_cols = attention.regions
    for i in range(num_rows):
        for j in range(num_cols):
            rows = slice(i * height // num_rows, (i + 1) * height // num_rows)
            cols = slice(j * width // num_cols, (j + 1) * width // num_cols)
            part = x[:, :, rows, cols]
            if part.numel():
                pooled = [part.mean((2, 3))] + [part.amax((2, 3))] * attention.max_pool
                scores = [attention.fc2(torch.relu(attention.fc1(p))) for p in pooled]
                y[:, :, rows, cols] = part * torch.sigmoid(sum(scores))[:, :, None, None]
    return y


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    regions=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    max_pool=st.booleans(),
)
def test_equals_the_plain_loop(
    size: tuple[int, int], regions: tuple[int, int], max_pool: bool
) -> None:
    torch.manual_seed(0)
    attention = RegionalChannelAttention(4, regions=regions, reduction=2, max_pool=max_pool)
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(attention(x), plain_loop(attention, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_maps_smaller_than_the_grid_are_cut_into_pixels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = RegionalChannelAttention(8, regions=(2, 2))
    x = torch.randn(2, 8, *size, requires_grad=True)
    attention(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    fc1, fc2 = attention.fc1, attention.fc2
    gates = regional_gates(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    assert gates.shape == (2, 8, min(2, size[0]), min(2, size[1]))


def test_later_regions_are_the_larger_ones() -> None:
    assert region_bounds(7, 2) == [0, 3, 7]
    assert region_bounds(14, 4) == [0, 3, 7, 10, 14]
    assert region_bounds(2, 3) == [0, 1, 2]


@pytest.mark.parametrize("size", [8, 7])
def test_keeps_channels_last(size: int) -> None:
    x = torch.randn(2, 8, size, size).to(memory_format=torch.channels_last)
    gates = torch.rand(2, 8, 2, 2)
    gated = apply_gates(x, gates)
    assert gated.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gated, apply_gates(x.contiguous(), gates))


@pytest.mark.parametrize("kind", ["regional", "channel", "squeeze_excite"])
def test_identity_start(kind: str) -> None:
    attention = make_attention(kind, 32, identity_start=True)
    assert attention is not None
    x = torch.randn(2, 32, 7, 7)
    expected = x * torch.sigmoid(torch.tensor(6.0))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("kind", ["regional", "channel", "squeeze_excite"])
@pytest.mark.parametrize("start", [0.1, 0.5, 0.9])
def test_gates_that_are_divided_by_their_start(kind: str, start: float) -> None:
    attention = make_attention(kind, 32, gate_start=start)
    assert isinstance(attention, RegionalChannelAttention)
    x = torch.randn(2, 32, 7, 7)
    torch.testing.assert_close(attention(x), x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention.gates(x).mean().item(), attention.identity)
    # What the layer before the gates learns moves them by the sigmoid's slope over the start.
    attention.gates(x)[0, 0, 0, 0].backward()
    grad = attention.fc2.bias.grad
    assert grad is not None
    twice = 1 if kind == "squeeze_excite" else 2
    assert grad[0].item() == pytest.approx(twice * (1 - start), rel=1e-4)
    # Trained, they are what undivided ones would be, over their start.
    plain = make_attention(kind, 32)
    assert isinstance(plain, RegionalChannelAttention)
    attention.load_state_dict(plain.state_dict())
    torch.testing.assert_close(attention.gates(x), plain.gates(x) / start)


def test_undivided_gates_have_next_to_no_slope() -> None:
    attention = make_attention("regional", 32, identity_start=True)
    assert isinstance(attention, RegionalChannelAttention)
    assert attention.gate_start is None
    assert attention.identity == pytest.approx(0.99753, abs=1e-5)
    attention.gates(torch.randn(1, 32, 4, 4))[0, 0, 0, 0].backward()
    assert attention.fc2.bias.grad is not None
    assert attention.fc2.bias.grad[0].item() == pytest.approx(2 * 0.0025, rel=0.02)


@pytest.mark.parametrize("start", [0.0, 1.0, -0.5, 7])
def test_a_start_that_no_sigmoid_has(start: float) -> None:
    with pytest.raises(ConfigError, match=rf"model\.gate_start={start}: .*Give 0\.5"):
        make_attention("regional", 8, gate_start=start)


def test_kinds() -> None:
    assert make_attention("none", 32) is None
    regional = make_attention("regional", 32, regions=(3, 1), reduction=8)
    assert isinstance(regional, RegionalChannelAttention)
    assert regional.regions == (3, 1)
    assert regional.fc1.weight.shape == (4, 32)
    channel = make_attention("channel", 8)
    assert isinstance(channel, RegionalChannelAttention)
    assert (channel.regions, channel.max_pool) == ((1, 1), True)
    assert channel.fc1.weight.shape == (1, 8)
    squeeze = make_attention("squeeze_excite", 8)
    assert isinstance(squeeze, RegionalChannelAttention)
    assert (squeeze.regions, squeeze.max_pool) == ((1, 1), False)
    with pytest.raises(ConfigError, match="'cbam'"):
        make_attention("cbam", 8)
    with pytest.raises(ConfigError, match="regions="):
        RegionalChannelAttention(8, regions=(0, 2))


@pytest.mark.parametrize(
    ("size", "regions", "start"),
    [
        ((8, 8), (2, 2), None),
        ((7, 7), (2, 2), None),
        ((7, 5), (3, 2), None),
        ((8, 8), (2, 2), 0.5),
        ((7, 5), (3, 2), 0.3),
    ],
)
def test_exports_to_onnx(
    size: tuple[int, int], regions: tuple[int, int], start: float | None, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    attention = RegionalChannelAttention(8, regions=regions, reduction=2, gate_start=start).eval()
    if start is not None:
        attention.fc2.reset_parameters()  # as if trained
    torch.onnx.export(
        attention,
        (torch.randn(2, 8, *size),),
        tmp_path / "a.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    session = ort.InferenceSession(tmp_path / "a.onnx")
    x = torch.randn(5, 8, *size)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, attention(x).detach().numpy(), rtol=1e-5, atol=1e-5)
