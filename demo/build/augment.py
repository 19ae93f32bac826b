"""Random views of RGBA pictures, a batch at a time in torch: recolour, move, lay on a background, jitter.

B pictures of side S; uint8 [B, S, S, 4] in, float [B, 3, size, size] in -1..1 out.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class Augment:
    """Draws every number from one generator, so that a seed fixes a run."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def chance(self, count: int, probability: float) -> Tensor:
        return self.uniform(count) < probability

    def __call__(self, pixels: Tensor, is_mono: Tensor, is_upright: Tensor, *, size: int) -> Tensor:
        rgba = pixels.permute(0, 3, 1, 2).float().div_(255)
        colour, alpha = rgba[:, :3], rgba[:, 3:]
        ink, inverted = self.ink(len(rgba))
        colour = torch.where(is_mono[:, None, None, None], ink[:, :, None, None], colour)
        moved = self.move(torch.cat([colour * alpha, alpha], 1), is_upright, size)
        back = self.background(len(rgba), size, ink, is_mono, inverted)
        image = moved[:, :3] + back * (1 - moved[:, 3:])
        return self.blur(self.jitter(image)).clamp_(0, 1).mul_(2).sub_(1)

    def ink(self, count: int) -> tuple[Tensor, Tensor]:
        """Colours for black icons: black, dark, or (inverted) light."""
        ink = self.uniform(count, 3, high=0.6) * self.chance(count, 0.5)[:, None]
        inverted = self.chance(count, 0.12)
        return torch.where(inverted[:, None], 1 - ink * 0.4, ink), inverted

    def move(self, planes: Tensor, is_upright: Tensor, size: int) -> Tensor:
        """One affine sampling: rotation, scale, aspect, shift, flip. Upright ones (signs) turn less and
        are never mirrored."""
        count = len(planes)
        angle = self.uniform(count, low=-0.26, high=0.26) * torch.where(is_upright, 0.5, 1.0)
        scale = 1 / self.uniform(count, low=0.75, high=1.2)
        aspect = self.uniform(count, low=0.9, high=1.1)
        flip = torch.where(self.chance(count, 0.3) & ~is_upright, -1.0, 1.0)
        shift = self.uniform(2, count, low=-0.24, high=0.24)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        rows = [flip * cos * aspect, -sin, shift[0], flip * sin * aspect, cos, shift[1]]
        theta = torch.stack(rows, 1).reshape(count, 2, 3)
        grid = F.affine_grid(theta, [*planes.shape[:2], size, size], align_corners=False)
        return F.grid_sample(planes, grid, align_corners=False)

    def background(self, count: int, size: int, ink: Tensor, is_inked: Tensor, inverted: Tensor) -> Tensor:
        """Half white, a quarter flat, a quarter smooth noise; never so near the ink that nothing is seen."""
        flat = self.uniform(count, 3, 1, 1).expand(count, 3, 4, 4)
        noise = self.uniform(count, 3, 4, 4)
        draw = self.uniform(count, 1, 1, 1)
        small = torch.where(draw < 0.5, 1.0, torch.where(draw < 0.75, flat, noise))
        hidden = (small.mean((2, 3)) - ink).abs().mean(1) < 0.3
        plain = torch.where(inverted, 0.05, 1.0)[:, None, None, None]
        small = torch.where((is_inked & (hidden | inverted))[:, None, None, None], plain, small)
        return F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)

    def jitter(self, image: Tensor) -> Tensor:
        """Brightness, contrast and channel gains by 30 %; one in eight grey."""
        count = len(image)
        gain = self.uniform(count, 1, 1, 1, low=0.7, high=1.3) * self.uniform(count, 3, 1, 1, low=0.85, high=1.15)
        mean = image.mean((1, 2, 3), keepdim=True)
        image = (image - mean) * self.uniform(count, 1, 1, 1, low=0.7, high=1.3) + mean
        image = image * gain
        grey = self.chance(count, 0.12)[:, None, None, None]
        return torch.where(grey, image.mean(1, keepdim=True), image)

    def blur(self, image: Tensor) -> Tensor:
        """One picture in eight goes through a low-resolution copy: tasks have 8-pixel digits and 24-pixel
        icons."""
        side = int(self.uniform(1, low=14, high=48))
        rows = self.chance(len(image), 0.12).nonzero()[:, 0]
        if len(rows):
            small = F.interpolate(image[rows], size=(side, side), mode="area")
            image[rows] = F.interpolate(small, size=image.shape[-2:], mode="bicubic", align_corners=False)
        return image
