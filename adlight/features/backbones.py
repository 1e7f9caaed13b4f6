"""Frozen networks of timm as feature extractors: named layers, brought to one grid.

Letters: B images, C channels of all layers, H x W pixels, h x w cells of the grid.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.data.frames import Size, group_by_size
from adlight.features.folding import fold_batch_norms
from adlight.features.weights import build_network
from adlight.settings import PathName, Text, checked
from adlight.types import UserError

TRANSFORMERS = ("vit_", "deit", "beit", "eva", "flexivit")  # those whose positions timm resizes on request
AT_ONCE = 2**18  # pixels on a CPU: glibc maps what is above 32 MiB anew for each layer, half of the time went there


class Backbone:
    """Maps images to the features of some layers of a frozen network, concatenated on one grid.

    Not an `nn.Module`, so that its weights are in no checkpoint, average or optimizer; `fingerprint` stands for them.

    Args:
        name: as timm knows it, such as `resnet18` or `vit_small_patch14_reg4_dinov2`.
        layers: names of modules (`blocks.3`), or indices into timm's `feature_info`.
        weights: `pretrained`, `random` or a file, see `build_network`.
        input_size: longer side, or height and width, that images are resized to; None: as they come.
        min_size: of the shorter side; smaller images are scaled up.
        stride: pixels per cell; None: the grid of the coarsest layer.

    Raises:
        UserError: no such network, weights or layer.
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
        self.outputs, self.grids = dict[str, Tensor](), dict[torch.Size, torch.Size]()  # grids of padded frames
        for layer in self.layers:
            self.network.get_submodule(layer).register_forward_hook(self._keep(layer))
        self._drop_later_layers()

    @torch.no_grad()
    def __call__(self, image: Tensor, size: Tensor | None = None) -> Tensor:
        """Extract features. (B, 1 or 3, H, W) in [0, 1] -> (B, h, w, C), rounded to the 16 bits that a cache keeps.

        Padded images pass without their padding, those of one height and width (B, 2) together; cells beyond are NaN.
        """
        self.to(image.device)
        if 2 * (self.stride or 0) > (side := min(self._input_sides(*image.shape[-2:]))):
            raise UserError(f"model.backbone.stride={self.stride} is over half of {side:g} pixels, a side: lower it")
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
            grid = min((one.shape[-2:] for one in maps), key=lambda size: size.numel())
            if self.stride is not None:
                grid = torch.Size(-(-side // self.stride) for side in pixels.shape[-2:])
            features = torch.cat([_to_grid(one, grid) for one in maps], 1)  # (B, C, h, w)
            return features.half().float().permute(0, 2, 3, 1)  # (B, h, w, C)

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        if self.mean.device != device:
            self.network, self.mean, self.std = (one.to(device) for one in (self.network, self.mean, self.std))

    @cached_property
    @torch.no_grad()
    def channels(self) -> int:
        """C, the features of a cell."""
        return self._extract(torch.zeros(1, 3, *self._probe_size()), torch.Size(self._probe_size())).shape[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, the layers and everything else that decides about features."""
        found = hashlib.blake2b(digest_size=12)
        sizes = self.stride, self.input_size, self.min_size, self.mean, self.std
        found.update(repr((self.name, self.layers, *sizes)).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def check_fingerprint(self, theirs: str | None) -> None:
        """Refuse what was made with other features.

        Raises:
            UserError: `theirs` is another fingerprint.
        """
        if theirs != self.fingerprint:
            raise UserError(
                f"the checkpoint was made with other features of {self.name} ({theirs}, here {self.fingerprint}): "
                "weights, layers, stride and input_size must be those of the training"
            )

    def prepare(self, image: Tensor, frame: torch.Size) -> Tensor:
        """Resize, as much as their frame would be, and normalize. (B, 1 or 3, H, W) -> (B, 3, H', W')."""
        wanted = self._input_sides(*frame)
        sides = [side * (new / old) for side, new, old in zip(image.shape[-2:], wanted, frame, strict=True)]
        size = [max(1, round(side / patch)) * patch for side, patch in zip(sides, self.patch, strict=True)]
        if list(image.shape[-2:]) != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        image = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        return image.contiguous(memory_format=torch.channels_last)

    def _input_sides(self, height: float, width: float) -> tuple[float, float]:
        """Compute the height and width that the network gets to see of an image."""
        if isinstance(self.input_size, int):
            scale = self.input_size / max(height, width)
            height, width = height * scale, width * scale
        elif self.input_size is not None:
            height, width = self.input_size
        larger = max(1.0, self.min_size / min(height, width))
        return height * larger, width * larger

    def maps(self, image: Tensor) -> list[Tensor]:
        """Run the network. (B, 3, H, W) -> one (B, C_i, h_i, w_i) a layer."""
        self.outputs.clear()
        self.network.forward_features(image)
        size = [side // patch for side, patch in zip(image.shape[-2:], self.patch, strict=True)]
        maps = [self.outputs.pop(layer) for layer in self.layers]
        return [one if one.ndim == 4 else self._tokens_to_map(one, size) for one in maps]

    def _tokens_to_map(self, tokens: Tensor, size: list[int]) -> Tensor:
        """Drop class and register tokens. (B, prefix + h w, C) -> (B, C, h, w)."""
        return tokens[:, self.network.num_prefix_tokens :].transpose(1, 2).unflatten(2, size)

    def _layer_name(self, layer: str | int) -> str:
        known = [one["module"] for one in self.network.feature_info]
        if isinstance(layer, int) and -len(known) <= layer < len(known):
            return known[layer]
        if isinstance(layer, int) or layer not in dict(self.network.named_modules()):
            raise UserError(f"layers: the backbone has no {layer!r}; known are {', '.join(known)} and their parts")
        return layer

    def _keep(self, layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: self.outputs.update({layer: output})

    def _probe_size(self) -> tuple[int, int]:
        return (64, 64) if self.patch == (1, 1) else (4 * self.patch[0], 4 * self.patch[1])

    def _drop_later_layers(self) -> None:
        """Replace what runs only after the last wanted layer by identities; they would cost time for nothing."""
        calls: list[tuple[bool, str]] = []  # whether all wanted layers had ended, and the module that began
        handles = [
            module.register_forward_pre_hook(
                lambda *_, name=name: calls.append((len(self.outputs) == len(self.layers), name))
            )
            for name, module in self.network.named_modules()
        ]
        self.maps(torch.zeros(1, 3, *self._probe_size()))
        for handle in handles:
            handle.remove()
        needed = {"", *(name for ended, name in calls if not ended)}
        for name in [name for ended, name in calls if ended and name not in needed]:
            parent, _, child = name.rpartition(".")
            if parent in needed:  # otherwise it is gone already, with its parent
                setattr(self.network.get_submodule(parent), child, nn.Identity())


def _to_grid(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Pool what is finer than the grid, interpolate what is coarser. (B, C, h', w') -> (B, C, h, w)."""
    if maps.shape[-2] >= grid[0] and maps.shape[-1] >= grid[1]:
        return F.adaptive_avg_pool2d(maps, (grid[0], grid[1]))
    return F.interpolate(maps, (grid[0], grid[1]), mode="bilinear", align_corners=False)
