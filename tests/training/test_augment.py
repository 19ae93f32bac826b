from __future__ import annotations

import pytest
import torch

from training.augment import Augmentation, Policy

SIZE = (16, 16)


def batch(augmentation: Augmentation, num_images: int = 64, seed: int = 0) -> torch.Tensor:
    height, width = augmentation.canvas
    return torch.rand(num_images, 3, height, width, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("policy", ["none", "crop", "draw"])
def test_the_result_depends_on_the_generator_alone(policy: Policy, flip: bool) -> None:
    augmentation = Augmentation(policy, flip, SIZE)
    images = batch(augmentation)
    first = augmentation.apply(images, augmentation.draw(64, generator()))
    torch.manual_seed(123)  # the global generator plays no part
    assert torch.equal(first, augmentation.apply(images, augmentation.draw(64, generator())))
    assert first.shape == (64, 3, *SIZE)
    assert first.min() >= 0
    assert first.max() <= 1
    if policy != "none" or flip:
        assert not torch.equal(first, augmentation.apply(images, augmentation.draw(64, generator(1))))


@pytest.mark.parametrize("policy", ["none", "crop", "draw"])
def test_a_part_of_the_batch_is_treated_as_within_the_whole(policy: Policy) -> None:
    augmentation = Augmentation(policy, True, SIZE)
    images, parameters = batch(augmentation), augmentation.draw(64, generator())
    whole = augmentation.apply(images, parameters)
    torch.testing.assert_close(augmentation.apply(images[1::3], parameters[1::3]), whole[1::3], rtol=0, atol=1e-6)


def test_none_leaves_pixels_alone() -> None:
    augmentation = Augmentation("none", False, SIZE)
    images = batch(augmentation)
    assert torch.equal(augmentation.apply(images, augmentation.draw(64, generator())), images)


def test_flip_mirrors_about_half_of_the_images_and_changes_nothing_else() -> None:
    augmentation = Augmentation("none", True, SIZE)
    images = batch(augmentation)
    out = augmentation.apply(images, augmentation.draw(64, generator()))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(out, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


def test_a_drawing_s_surroundings_stay_white() -> None:
    augmentation = Augmentation("draw", False, (32, 32))
    parameters = augmentation.draw(64, generator())
    parameters[:, 6:9] = 1  # no jitter: white is to stay white
    out = augmentation.apply(torch.ones(64, 3, 32, 32), parameters)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_a_crop_takes_its_pixels_from_a_larger_canvas() -> None:
    augmentation = Augmentation("crop", False, (224, 224))
    assert augmentation.canvas == (256, 256)
    ramp = torch.linspace(0, 1, 256).expand(8, 3, 256, 256).contiguous()
    out = augmentation.apply(ramp, augmentation.draw(8, generator()))
    width = (out[:, 0, 0, -1] - out[:, 0, 0, 0]).clamp(max=1)
    assert (width > 0.8).all()  # 90 % of the area, at an aspect of 4/3 at most
    assert (out[:, 0, 0].diff() >= -1e-6).all()
