"""The network that draws density maps: a ResNet as encoder, and a head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...model import ResNet

MAP_SCALE = 100  # density maps are learnt times this, as Li's report does: a head is spread over very small numbers


class CrowdNet(nn.Module):
    """images [B, 3, H, W] -> density maps × `MAP_SCALE` [B, 1, h, w], which sum to the count × `MAP_SCALE`.

    encoder: a ResNet up to its last stage; `stride` is the pixels of a map's cell, h = ceil(H / stride).
    head: "linear", a 1×1 convolution whose map is upsampled to the images' size (stride 1), or "dilated", 3×3
    convolutions of dilation 2 at the encoder's stride (as in Li et al., "CSRNet", CVPR 2018).
    """

    def __init__(self, encoder: ResNet, head: str) -> None:
        super().__init__()
        channels, self.stride = encoder.fc.in_features, encoder.stride
        encoder.avgpool, encoder.dropout, encoder.fc = nn.Identity(), nn.Identity(), nn.Identity()
        self.encoder = encoder
        self.upsampled = head == "linear"
        layers = []
        if self.upsampled:
            self.stride = 1
        else:
            for width in (channels // 2, channels // 4):
                layers += [nn.Conv2d(channels, width, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(width)]
                layers += [nn.ReLU()]
                nn.init.kaiming_normal_(layers[-3].weight, mode="fan_out", nonlinearity="relu")
                channels = width
        layers.append(nn.Conv2d(channels, 1, 1))
        nn.init.normal_(layers[-1].weight, std=0.01)  # so that the first maps are near zero, as true ones are
        nn.init.zeros_(layers[-1].bias)
        self.head = nn.Sequential(*layers)

    def features(self, x: Tensor) -> Tensor:
        """images [B, 3, H, W] -> the encoder's maps [B, C, h, w]."""
        return self.encoder.features(x)

    def forward(self, x: Tensor) -> Tensor:
        # The head says what a pixel holds, whatever the stride: Adam's small steps would take long to what a cell does.
        maps = self.head(self.features(x)) * self.stride**2
        if self.upsampled:
            maps = F.interpolate(maps, x.shape[2:], mode="bilinear", align_corners=False)
        return maps
