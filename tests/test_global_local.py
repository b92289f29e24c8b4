import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import disc, photographed

from refine.methods.global_local import BORDER, enlarged, global_step, local_step, windows

SIZES = [(1, 1), (1, 70), (70, 1), (66, 66), (67, 131), (150, 200), (201, 99)]


def picture(size):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))


class Seen:
    """A module that keeps its inputs and gives the coarse mask back, or one value."""

    def __init__(self, value=None):
        self.inputs, self.value = [], value

    def __call__(self, x, mask, mask8=None):
        self.inputs.append((x, mask, mask8))
        p = (mask + 1) / 2 if self.value is None else torch.full_like(mask, self.value)
        return p, p / 2


def published_starts(n, side):
    """Where crops begin along an axis: one step after the other, moved back into the picture."""
    starts = []
    for i in range(n // (side // 2 - 32) + 1):
        start = i * (side // 2 - 32)
        if start + side > n:
            start = n - side
        starts.append(max(0, start))
    return set(starts)


@pytest.mark.parametrize(("size", "side"), [*((s, n) for s in SIZES for n in (66, 96, 133)), ((950, 2231), 900)])
def test_crops_lie_where_the_published_ones_do_and_leave_nothing_out(size, side):
    found = list(windows(*size, side))
    assert {w.top for w in found} == published_starts(size[0], side)
    assert {w.left for w in found} == published_starts(size[1], side)
    assert len(set(found)) == len(found) == len({w.top for w in found}) * len({w.left for w in found})
    assert {(w.height, w.width) for w in found} == {tuple(min(side, n) for n in size)}
    count = np.zeros(size, int)
    for w in found:
        trusted = w._replace(
            top=w.top + BORDER * (w.top > 0),
            bottom=w.bottom - BORDER * (w.bottom < size[0]),
            left=w.left + BORDER * (w.left > 0),
            right=w.right - BORDER * (w.right < size[1]),
        )
        count[trusted.slices] += 1
    assert count.min() > 0


@pytest.mark.parametrize("side", [66, 99, 160])  # px by which crops of the first are apart: 1
@pytest.mark.parametrize("size", [*SIZES[:5], (90, 101)])
def test_a_module_that_changes_nothing_leaves_the_global_steps_decision(size, side):
    image, fine = picture(size), torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(1))
    decided = F.interpolate(fine, size=size, mode="bilinear") > 0.5
    found = local_step(Seen(), image, fine, fine, side)
    torch.testing.assert_close(found.probability, decided[0, 0].float(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(64, 64), (61, 64), (64, 61), (61, 59)])
def test_inputs_are_multiples_of_8_grown_by_grey_and_background(size):
    module, mask = Seen(), torch.ones(size, dtype=torch.bool)
    fine, fine4 = global_step(module, picture(size), mask, max(size))
    assert fine.shape == fine4.shape == (1, 1, *size)
    ((x, coarse, mask8),) = module.inputs
    grown = (64, 64) if size == (64, 64) else tuple((n // 8 + 1) * 8 for n in size)
    assert mask8 is None
    assert x.shape[-2:] == coarse.shape[-2:] == grown
    assert (coarse[..., : size[0], : size[1]] == 1).all()
    for rest in ((..., slice(size[0], None), slice(None)), (..., slice(None), slice(size[1], None))):
        assert (x[rest] == 0).all()
        assert (coarse[rest] == -1).all()


def test_the_picture_is_normalised_as_torchvision_does():
    from torchvision import transforms

    image, module = picture((16, 24)), Seen()
    global_step(module, image, torch.ones(16, 24, dtype=torch.bool), 24)
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(module.inputs[0][0][0], normalise(image / 255))


@pytest.mark.parametrize("size", [(100, 37), (37, 100), (99, 98), (150, 333)])
@pytest.mark.parametrize("side", [66, 72, 200])
def test_the_picture_is_resized_as_published(size, side):
    mask, module = torch.rand(size, generator=torch.Generator().manual_seed(1)) > 0.5, Seen()
    fine, _ = global_step(module, picture(size), mask, side)
    binary = mask[None, None].float() * 2 - 1
    options = {"mode": "area"} if max(size) > side else {"mode": "bilinear", "align_corners": False}
    wanted = F.interpolate(binary, scale_factor=side / max(size), **options)
    torch.testing.assert_close(fine, (wanted + 1) / 2)


def test_a_side_that_would_vanish_keeps_a_pixel():
    fine, _ = global_step(Seen(), picture((1, 300)), torch.ones(1, 300, dtype=torch.bool), 100)
    assert fine.shape == (1, 1, 1, 100)


@pytest.mark.parametrize("size", [(50, 80), (31, 17), (80, 50)])
def test_the_global_step_alone_gives_a_mask_of_the_pictures_size(size):
    fine = torch.rand(1, 1, 40, 60, generator=torch.Generator().manual_seed(1))
    found = enlarged(fine, size, 60)
    assert found.shape == size
    if max(size) > 60:  # the corners stay where they are
        torch.testing.assert_close(found[[0, 0, -1, -1], [0, -1, 0, -1]], fine[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]])
    else:
        torch.testing.assert_close(found, F.adaptive_avg_pool2d(fine, size)[0, 0])


def test_the_local_step_is_told_the_decision_and_the_probability_at_stride_4():
    size, module = (120, 100), Seen()
    fine, fine4 = torch.from_numpy(disc(size, 30)).float()[None, None] * 0.8, torch.rand(1, 1, *size)
    found = local_step(module, picture(size), fine, fine4, 120)
    ((_, mask, mask8),) = module.inputs
    torch.testing.assert_close(mask[..., :120, :100], torch.where(fine > 0.5, 1.0, -1.0))
    torch.testing.assert_close(mask8[..., :120, :100], 2 * fine4 - 1)
    assert (found.crops, found.left) == (1, 0)


def test_crops_with_less_than_a_tenth_of_one_class_are_left_as_they_are():
    fine = torch.zeros(1, 1, 100, 300)
    fine[..., :50, :100] = 1  # half of the first crop
    fine[..., :9, 200:] = 1  # 9 % of the last
    found = local_step(Seen(0.5), picture((100, 300)), fine, fine, 100)
    assert found.left > 0
    assert found.crops > found.left
    assert (found.probability[:, :60] == 0.5).all()
    torch.testing.assert_close(found.probability[:, 250:], fine[0, 0, :, 250:])


def test_a_crops_inner_border_is_not_trusted():
    class Bordered(Seen):
        def __call__(self, x, mask, mask8=None):
            p = torch.zeros_like(mask)
            p[..., 15:85, 15:85] = 1  # one more px than is trusted on each side
            return p, p

    fine = torch.zeros(1, 1, 100, 168)
    fine[..., ::2, :] = 1
    found = local_step(Bordered(), picture((100, 168)), fine, fine, 100).probability
    assert (found[15:85, 15:153] == 1).all()
    assert (found[:, :15] == 0).all()  # the picture's own border is taken
    assert (found[:15] == 0).all()


def test_crops_that_disagree_are_averaged():
    values = iter(range(100))

    def module(x, mask, mask8):
        value = torch.full_like(mask, float(next(values)))
        return value, value

    fine = torch.zeros(1, 1, 100, 118)
    fine[..., ::2, :] = 1
    found = local_step(module, picture((100, 118)), fine, fine, 100).probability
    assert (found[:, :34] == 0).all()  # the second crop begins at 18 px and is trusted from 16 px on
    assert (found[:, 34:84] == 0.5).all()
    assert (found[:, 84:] == 1).all()


def test_nothing_is_refined_where_the_global_step_left_nothing():
    module = Seen()
    found = local_step(module, picture((90, 90)), torch.zeros(1, 1, 70, 70), torch.zeros(1, 1, 70, 70), 70)
    assert not module.inputs
    assert not found.probability.any()
    assert found.crops == 0


def test_photographs_are_cut_where_their_masks_are():
    truth, module = disc((200, 150), 60), Seen()
    image = torch.from_numpy(photographed(truth)).permute(2, 0, 1)
    local_step(module, image, *[torch.from_numpy(truth).float()[None, None]] * 2, 100)
    for x, mask, _ in module.inputs:
        inside, outside = (x[0, 0, :100, :100][mask[0, 0, :100, :100] == value].mean() for value in (1, -1))
        assert inside > outside + 2  # the object is redder by 150 / 255 / 0.229
