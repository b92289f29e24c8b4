import numpy as np
import pytest
import torch
from torch.nn import functional as F

from refine.config import Cascade
from refine.frame import Frame
from refine.models import PRESETS
from refine.prepare import Pair

CPU = torch.device("cpu")
PUBLISHED, AREA = PRESETS["crm-r50"].cascade, PRESETS["crm-s"].cascade


def pair(height: int, width: int) -> Pair:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pair(image, rng.random((height, width), np.float32))


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (33, 34), (50, 7)])
def test_the_published_border_is_numpys_reflection_and_is_cut_again(size):
    given = pair(*size)
    frame = Frame(given, PUBLISHED, CPU)
    assert frame.size == (size[0] + 64, size[1] + 64)
    expected = np.pad(given.mask, 32, mode="reflect") * 2 - 1
    np.testing.assert_allclose(frame.mask.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(frame.cut((frame.mask + 1) / 2), given.mask, atol=1e-6)


def test_the_published_input_is_normalised_and_resized_with_its_corners_kept():
    given = pair(40, 60)
    frame = Frame(given, PUBLISHED, CPU)
    size = frame.scaled(0.5)
    assert size == (52, 62)
    x = frame.input(size, frame.mask)
    padded = np.pad(given.image, ((32, 32), (32, 32), (0, 0)), mode="reflect")
    rgb = (
        torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255 - torch.tensor(PUBLISHED.mean).view(3, 1, 1)
    ) / (torch.tensor(PUBLISHED.std).view(3, 1, 1))
    expected = F.interpolate(
        torch.cat((rgb, frame.mask[None, None]), 1), size=size, mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)


def test_halves_are_rounded_to_even():
    frame = Frame(pair(36, 20), PUBLISHED, CPU)  # 100 x 84 with its border
    assert frame.scaled(1 / 8) == (12, 10)


def test_an_area_input_is_the_mean_of_the_pixels_a_sample_covers():
    given = pair(40, 60)
    frame = Frame(given, AREA, CPU)
    assert frame.size == (40, 60)
    x = frame.input((20, 30), frame.mask)
    means = given.image.reshape(20, 2, 30, 2, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(x[0, :3].permute(1, 2, 0).numpy(), means, atol=0.51 / 255)
    masks = (2 * given.mask - 1).reshape(20, 2, 30, 2).mean((1, 3))
    np.testing.assert_allclose(x[0, 3].numpy(), masks, atol=1e-6)


def test_a_guide_is_the_picture_at_the_queries_and_the_inputs_mask_enlarged():
    frame = Frame(pair(40, 60), AREA, CPU)
    x = frame.input((20, 30), frame.mask)
    guide = frame.guide((40, 60), x)
    torch.testing.assert_close(guide[:, :3], frame.input((40, 60), frame.mask)[:, :3])
    expected = F.interpolate(x[:, 3:], size=(40, 60), mode="bilinear", align_corners=False)
    torch.testing.assert_close(guide[:, 3:], expected)
    assert frame.guide((20, 30), x) is x


@pytest.mark.parametrize(("total", "empty"), [(0.0, True), (0.9, True), (1.1, False)])
def test_less_than_one_pixel_of_foreground_is_empty(total, empty):
    frame = Frame(pair(10, 10), Cascade(pad=0), CPU)
    p = torch.zeros(10, 10)
    p[3, 4] = total
    assert frame.is_empty(p) == empty
    assert frame.is_empty(torch.full((5, 5), total / 100)) == empty
