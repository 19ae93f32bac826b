"""Augmentation of whole batches: float images in [0, 1] in and out, every random number from one generator.

Parameters are drawn for the global batch and applied to any part of it, so workers that share a batch get the images
that one worker would, on any device. Letters: B images, H x W pixels of the result, h x w pixels of the canvas before.

- `none`: the image as evaluation sees it.
- `crop`: a random resized crop of 90-100 % of the area, as open_clip does it for CLIP.
- `draw`: for drawings and glyphs on white: small changes of rotation, scale, position and aspect on a white canvas,
  colour jitter, and a tenth of the images reduced to half the resolution and enlarged again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

from training.recipe import Policy

_CROP_AREA = (0.9, 1.0)
_CROP_ASPECT = 4 / 3
_CROP_CANVAS = 8 / 7
"""A crop is enlarged, so its canvas has more pixels than the result (256 for 224)."""
_ROTATION_DEGREES = 10.0
_SCALE = (0.85, 1.15)
_SHIFT = 0.08
_ASPECT = 0.07
_JITTER = 0.25
_LOW_RESOLUTION_SHARE = 0.1

# columns of the parameters: 0-5 the affine map from result to canvas, row by row; then these
_BRIGHTNESS, _CONTRAST, _SATURATION, _LOW_RESOLUTION = 6, 7, 8, 9


@dataclass(frozen=True)
class Augmentation:
    """One policy for images of one size. `flip` mirrors half of them under any policy."""

    policy: Policy
    flip: bool
    size: tuple[int, int]
    """Height and width of the result."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width that `apply` takes."""
        if self.policy != "crop":
            return self.size
        return math.ceil(self.size[0] * _CROP_CANVAS), math.ceil(self.size[1] * _CROP_CANVAS)

    def draw(self, num_images: int, generator: torch.Generator) -> torch.Tensor:
        """Random parameters of a batch, float32 [B, 10] on the CPU."""

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(num_images, generator=generator)

        one, zero = torch.ones(num_images), torch.zeros(num_images)
        affine, colour = [one, zero, zero, zero, one, zero], [one, one, one, zero]
        if self.policy == "crop":
            area, aspect = uniform(*_CROP_AREA), torch.exp(uniform(-math.log(_CROP_ASPECT), math.log(_CROP_ASPECT)))
            width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
            affine = [width, zero, (1 - width) * uniform(-1, 1), zero, height, (1 - height) * uniform(-1, 1)]
        elif self.policy == "draw":
            angle = uniform(-math.radians(_ROTATION_DEGREES), math.radians(_ROTATION_DEGREES))
            scale, aspect = uniform(*_SCALE), uniform(1 - _ASPECT, 1 + _ASPECT)
            across, down = 1 / (scale * aspect), aspect / scale
            shift_x = uniform(-2 * _SHIFT, 2 * _SHIFT)  # the canvas is 2 wide
            shift_y = uniform(-2 * _SHIFT, 2 * _SHIFT)
            cos, sin = torch.cos(angle), torch.sin(angle)
            affine = [cos * across, -sin * down, shift_x, sin * across, cos * down, shift_y]
            colour = [uniform(1 - _JITTER, 1 + _JITTER) for _ in range(3)]
            colour.append((torch.rand(num_images, generator=generator) < _LOW_RESOLUTION_SHARE).float())
        if self.flip:
            sign = (torch.rand(num_images, generator=generator) < 0.5).float() * -2 + 1
            affine[0], affine[3] = affine[0] * sign, affine[3] * sign
        return torch.stack([*affine, *colour], dim=1)

    def apply(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Augment float images [B, 3, h, w] of the canvas's size to [B, 3, H, W], by parameters [B, 10] of `draw`."""
        size = tuple(images.shape[-2:])
        assert size == self.canvas, f"images are {size}, the canvas {self.canvas}"
        parameters = parameters.to(images.device)
        if self.policy == "none":  # exact: no resampling
            mirrored = (parameters[:, 0] < 0).view(-1, 1, 1, 1)
            return torch.where(mirrored, images.flip(-1), images) if self.flip else images
        grid = affine_grid(parameters[:, :6].view(-1, 2, 3), [len(images), 3, *self.size], align_corners=False)
        if self.policy == "crop":
            return grid_sample(images, grid, padding_mode="border", align_corners=False)
        # padded in the negative: white comes in at the edges, not black
        images = 1 - grid_sample(1 - images, grid, padding_mode="zeros", align_corners=False)
        return _lower_resolution(_jitter(images, parameters), parameters[:, _LOW_RESOLUTION] > 0)


def _jitter(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Brightness, then saturation about each pixel's grey, then contrast about the image's mean grey."""
    brightness, contrast, saturation = (
        parameters[:, column].view(-1, 1, 1, 1) for column in (_BRIGHTNESS, _CONTRAST, _SATURATION)
    )
    images = images * brightness
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    grey = (images * weights).sum(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = grey.mean((2, 3), keepdim=True)
    return (mean + (images - mean) * contrast).clamp(0, 1)


def _lower_resolution(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return images
    height, width = images.shape[-2:]
    small = interpolate(images[rows], size=(max(1, height // 2), max(1, width // 2)), mode="area")
    return images.index_copy(0, rows, interpolate(small, size=(height, width), mode="bilinear", align_corners=False))
