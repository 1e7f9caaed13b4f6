"""Frozen timm networks as feature extractors: features of several layers, resampled to one grid.

Letters: B images, C channels of all layers together, H x W pixels, h x w cells of the grid.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.data.frames import Size, group_by_size
from adlight.features.weights import build_network, drop_later_modules, fold_batch_norms
from adlight.settings import PathName, Text, checked
from adlight.types import UserError

TRANSFORMERS = ("vit_", "deit", "beit", "eva", "flexivit")  # timm resizes their position embeddings on request
AT_ONCE = 2**18  # pixels per pass on a CPU; glibc maps arrays above 32 MiB anew each time, which doubles the time


class Backbone:
    """Maps images to the features of some layers of a frozen network, concatenated on one grid.

    Not an `nn.Module`, so that its weights stay out of checkpoints, EMA and optimizers; `fingerprint` represents them.

    Args:
        name: timm's name of the network, such as `resnet18` or `vit_small_patch14_reg4_dinov2`.
        layers: names of modules (`blocks.3`), or indices into timm's `feature_info`.
        weights: `pretrained`, `random` or a file, see `build_network`.
        input_size: longer side, or height and width, to which images are resized; None keeps their size.
        min_size: smallest length of the shorter side; smaller images are scaled up.
        stride: pixels per cell; None takes the grid of the coarsest layer.

    Raises:
        UserError: the network, its weights or a layer do not exist.
    """

    @checked
    def __init__(
        self,
        name: Text,
        layers: Annotated[Sequence[Text | int], Field(min_length=1)],
        weights: PathName = "pretrained",
        input_size: Size | None = None,
        min_size: PositiveInt = 1,
        stride: PositiveInt | None = None,
    ) -> None:
        network = build_network(name, weights, **({"dynamic_img_size": True} if name.startswith(TRANSFORMERS) else {}))
        self.patch: tuple[int, int] = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
        network = fold_batch_norms(network, torch.rand(1, 3, *self._probe_size(), generator=Generator()))
        self.network: Any = network.to(memory_format=torch.channels_last)  # a third faster on CPUs
        self.layers = list(dict.fromkeys(map(self._layer_name, layers)))
        self.name, self.input_size, self.min_size, self.stride = name, input_size, min_size, stride
        self.mean, self.std = (torch.tensor(self.network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.outputs, self.grids = dict[str, Tensor](), dict[torch.Size, torch.Size]()  # grids by size of padded frames
        for layer in self.layers:
            self.network.get_submodule(layer).register_forward_hook(partial(self._store_output, layer))
        probe = torch.zeros(1, 3, *self._probe_size())
        drop_later_modules(self.network, lambda: self.maps(probe), lambda: len(self.outputs) == len(self.layers))

    @torch.no_grad()
    def __call__(self, image: Tensor, size: Tensor | None = None) -> Tensor:
        """Extract features. (B, 1 or 3, H, W) in [0, 1] -> (B, h, w, C), rounded to the 16 bits that a cache stores.

        If images have heights and widths `size` (B, 2), the padding beyond is cut off first, and its cells are NaN.
        """
        self.to(image.device)
        side = min(self._input_sides(*image.shape[-2:]))
        if self.stride is not None and 2 * self.stride > side:
            raise UserError(
                f"model.backbone.stride={self.stride} exceeds half the image's side of {side:g} pixels: lower it"
            )
        if size is None:
            return self._extract(image, image.shape[-2:])
        if (frame := image.shape[-2:]) not in self.grids:
            self.grids[frame] = self._extract(image.new_zeros(1, 3, *frame), frame).shape[1:]
        features = image.new_full((len(image), *self.grids[frame]), torch.nan, dtype=torch.float32)
        for rows, height, width in group_by_size(size):
            part = self._extract(image[rows, :, :height, :width], frame)
            features[rows, : part.shape[1], : part.shape[2]] = part
        return features

    def _extract(self, image: Tensor, frame: torch.Size) -> Tensor:
        few = max(1, int(AT_ONCE // math.prod(self._input_sides(*frame))))
        if not torch.compiler.is_exporting() and len(image) > few and image.device.type == "cpu":
            return torch.cat([self._extract(part, frame) for part in image.split(few)])
        with torch.autocast(image.device.type, enabled=False):
            pixels = self.prepare(image.float(), frame)  # (B, 3, H', W')
            maps = self.maps(pixels)
            grid = min((layer.shape[-2:] for layer in maps), key=lambda size: size.numel())
            if self.stride is not None:
                grid = torch.Size(math.ceil(side / self.stride) for side in pixels.shape[-2:])
            maps = [_to_grid(layer, grid) for layer in maps]  # (B, C_i, h, w) each
            return torch.cat(maps, 1).half().float().permute(0, 2, 3, 1)  # (B, h, w, C)

    def to(self, device: torch.device) -> None:
        """Move the network to a device."""
        if self.mean.device != device:
            self.network.to(device)
            self.mean, self.std = self.mean.to(device), self.std.to(device)

    @cached_property
    @torch.no_grad()
    def channels(self) -> int:
        """C, the number of features per cell."""
        return self._extract(torch.zeros(1, 3, *self._probe_size()), torch.Size(self._probe_size())).shape[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, the layers and all settings that affect the features."""
        digest = hashlib.blake2b(digest_size=12)
        settings = self.name, self.layers, self.stride, self.input_size, self.min_size, self.mean, self.std
        digest.update(repr(settings).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_fingerprint(self, expected: str | None) -> None:
        """Raise a UserError if a checkpoint was made with other features, whose fingerprint is `expected`."""
        if expected != self.fingerprint:
            raise UserError(
                f"the checkpoint was made with other features of {self.name} ({expected}, here {self.fingerprint}): "
                "set weights, layers, stride and input_size as in its training"
            )

    def prepare(self, image: Tensor, frame: torch.Size) -> Tensor:
        """Resize images by the factor of their frame, and normalize them. (B, 1 or 3, H, W) -> (B, 3, H', W')."""
        scales = [new / old for new, old in zip(self._input_sides(*frame), frame, strict=True)]
        sides = [side * scale for side, scale in zip(image.shape[-2:], scales, strict=True)]
        size = [max(1, round(side / patch)) * patch for side, patch in zip(sides, self.patch, strict=True)]
        if list(image.shape[-2:]) != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        image = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        return image.contiguous(memory_format=torch.channels_last)

    def _input_sides(self, height: float, width: float) -> tuple[float, float]:
        """Return the height and width to which an image is resized for the network."""
        if isinstance(self.input_size, int):
            scale = self.input_size / max(height, width)
            height, width = height * scale, width * scale
        elif self.input_size is not None:
            height, width = self.input_size
        larger = max(1.0, self.min_size / min(height, width))
        return height * larger, width * larger

    def maps(self, image: Tensor) -> list[Tensor]:
        """Run the network on prepared images. (B, 3, H, W) -> (B, C_i, h_i, w_i) per layer."""
        self.outputs.clear()
        self.network.forward_features(image)
        size = [side // patch for side, patch in zip(image.shape[-2:], self.patch, strict=True)]
        maps = []
        for layer in self.layers:
            output = self.outputs.pop(layer)  # (B, C_i, h_i, w_i), or tokens (B, prefix + h_i w_i, C_i)
            if output.ndim == 3:  # drop class and register tokens
                output = output[:, self.network.num_prefix_tokens :].transpose(1, 2).unflatten(2, size)
            maps.append(output)
        return maps

    def _layer_name(self, layer: str | int) -> str:
        known = [info["module"] for info in self.network.feature_info]
        if isinstance(layer, int) and -len(known) <= layer < len(known):
            return known[layer]
        if isinstance(layer, int) or layer not in dict(self.network.named_modules()):
            raise UserError(f"layers: the backbone has no {layer!r}, only {', '.join(known)} and their submodules")
        return layer

    def _store_output(self, layer: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs[layer] = output

    def _probe_size(self) -> tuple[int, int]:
        return (64, 64) if self.patch == (1, 1) else (4 * self.patch[0], 4 * self.patch[1])


def _to_grid(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Pool maps finer than the grid and interpolate coarser ones. (B, C, h', w') -> (B, C, h, w)."""
    if maps.shape[-2] >= grid[0] and maps.shape[-1] >= grid[1]:
        return F.adaptive_avg_pool2d(maps, (grid[0], grid[1]))
    return F.interpolate(maps, (grid[0], grid[1]), mode="bilinear", align_corners=False)
