"""What excites a channel, over many images, and what in one image speaks for a class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..model import ResNet
from .layers import locate, outputs


@torch.no_grad()
def peaks(model: ResNet, batches: Iterable[tuple[Tensor, Tensor]], name: str) -> tuple[Tensor, Tensor]:
    """The highest value of each channel of a layer's maps in each image, and where it is.

    batches: (images [B, 3, H, W], labels) as the model takes them. Returns float [N, C] and int64 [N, C, 2], (row,
    column) in the maps, the first of equals, both on the CPU. Raises UserError as `locate` and `outputs` do.
    """
    layer, values, places = locate(model, name), [], []
    for images, _ in batches:
        maps = outputs(model, images, [layer])[1][layer]
        highest, where = maps.flatten(2).max(2)
        values.append(highest.cpu())
        places.append(torch.stack([where // maps.shape[3], where % maps.shape[3]], dim=2).cpu())
    return torch.cat(values), torch.cat(places)


def gradcam(model: ResNet, images: Tensor, name: str, target: int | None, net: nn.Module | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of class `target` at a layer: float [B, h, w], not negative.

    images [B, 3, H, W]. The layer's maps are summed, each weighted by the mean gradient of the class's logit over it,
    and what speaks against the class is cut off. target: None for the sum of all that is put out, such as the count of
    a density map; net: see `outputs`. Raises UserError as `locate` and `outputs` do.
    """
    layer = locate(model, name)
    with torch.enable_grad():
        images = images.detach().requires_grad_()  # so that frozen weights do not matter
        made, maps = outputs(model, images, [layer], net)
        (gradient,) = torch.autograd.grad((made if target is None else made[:, target]).sum(), maps[layer])
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * maps[layer]).sum(1).clamp(min=0).detach()
