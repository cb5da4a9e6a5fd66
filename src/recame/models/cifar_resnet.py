"""The thin three-stage ResNets of the CIFAR experiments, registered with timm.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2. Long-tailed
work on CIFAR uses `resnet32_cifar`. Deviation: where the width doubles, the shortcut is a 1 x 1
convolution with batch norm (He et al.'s option B), as in timm's blocks, instead of zero padding.
"""

from __future__ import annotations

from typing import Any

from timm.models import adapt_input_conv, register_model
from timm.models.resnet import BasicBlock, make_blocks
from torch import Tensor, nn

_CHANNELS = (16, 32, 64)


class CifarResNet(nn.Module):
    """A 3 x 3 stem and three stages of 16, 32 and 64 channels, without pooling before them.

    Args:
        blocks: residual blocks of each stage; 5 makes ResNet-32.
        in_chans: channels of the images.
        num_classes: of the classifier; 0: none.
    """

    def __init__(self, blocks: int, in_chans: int = 3, num_classes: int = 0) -> None:
        super().__init__()
        width = _CHANNELS[0]
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        stages, self.feature_info = make_blocks(
            (BasicBlock,) * len(_CHANNELS), _CHANNELS, (blocks,) * len(_CHANNELS), inplanes=width
        )
        for name, stage in stages:
            self.add_module(name, stage)
        self.num_features = _CHANNELS[-1]
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, 64, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        for name in ("layer1", "layer2", "layer3"):
            x = getattr(self, name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images to logits, or to pooled features without a classifier."""
        return self.fc(self.forward_features(x).mean((2, 3)))  # type: ignore[no-any-return]


def _create(blocks: int, pretrained: bool, settings: dict[str, Any]) -> CifarResNet:
    known = {key: settings[key] for key in ("in_chans", "num_classes") if key in settings}
    model = CifarResNet(blocks, **known)
    if pretrained:
        tensors = (settings.get("pretrained_cfg_overlay") or {}).get("state_dict")
        if tensors is None:
            raise ValueError("there are no weights for the CIFAR ResNets: use pretrained=False")
        kept = {
            name: t for name, t in tensors.items() if known.get("num_classes") or name[:3] != "fc."
        }
        if (stem := kept.get("conv1.weight")) is not None:
            kept["conv1.weight"] = adapt_input_conv(model.conv1.in_channels, stem)
        model.load_state_dict(kept)
    return model


@register_model
def resnet20_cifar(pretrained: bool = False, **settings: Any) -> CifarResNet:
    """ResNet-20: 0.27 M parameters."""
    return _create(3, pretrained, settings)


@register_model
def resnet32_cifar(pretrained: bool = False, **settings: Any) -> CifarResNet:
    """ResNet-32: 0.46 M parameters."""
    return _create(5, pretrained, settings)
