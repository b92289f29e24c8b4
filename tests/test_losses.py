import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from refine.errors import OptionError
from refine.training.losses import CRM, LOSSES, RISING, Loss, distance_map, gradient_magnitude, parse_loss

RATIOS = ("dice", "jaccard", "tversky", "focal-tversky")  # of areas


def random_logit(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square(size: int = 16, shift: int = 0) -> Tensor:
    """A truth: a square of half the size."""
    truth = torch.zeros(1, 1, size, size)
    truth[..., size // 4 : 3 * size // 4, size // 4 + shift : 3 * size // 4 + shift] = 1
    return truth


def value(name: str, logit: Tensor, truth: Tensor) -> float:
    return float(parse_loss(name)(logit, truth, progress=1.0).detach())


def areas(logit: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """True positives, false positives and false negatives of a binary truth."""
    p, t = logit.double().sigmoid(), truth.double()
    return float((p * t).sum()), float((p * (1 - t)).sum()), float(((1 - p) * t).sum())


# Expressions


@given(
    st.dictionaries(st.sampled_from(sorted(LOSSES)), st.floats(0, exclude_min=True, allow_infinity=False), min_size=1)
)
def test_any_sum_of_weighted_names_is_a_loss(weights):
    text = " + ".join(f"{weight!r}*{name}" for name, weight in weights.items())
    assert parse_loss(text) == Loss(tuple(weights.items()))


@pytest.mark.parametrize(
    "text", ["bce+.5*l1", " bce  + 0.5 * l1 ", "1*bce + 5e-1*l1", "1.0*bce+5.E-1 *l1", "1e+0*bce+.5*l1"]
)
def test_blanks_and_ways_of_writing_a_number_make_no_difference(text):
    assert parse_loss(text) == Loss((("bce", 1.0), ("l1", 0.5)))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", ""),
        ("bce +", ""),
        ("+ bce", ""),
        ("bce + + l1", ""),
        ("2", "2"),
        ("2*", "2*"),
        ("*l1", "*l1"),
        ("bce l1", "bce l1"),
        ("bce - 0.5*l1", "bce - 0.5*l1"),
        ("bce, l1", "bce, l1"),
        ("bce*0.5", "bce*0.5"),
        ("2*3*l1", "2*3*l1"),
        ("half*l1", "half*l1"),
        ("l2 + BCE", "BCE"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_what_is_no_sum_of_names_is_an_error_that_shows_the_place(text, part):
    with pytest.raises(OptionError) as raised:
        parse_loss(text)
    message = str(raised.value)
    assert message.startswith(
        f"loss={text!r} is not understood at {part!r}; give a sum like 'bce + 0.5*l1' of bce, l1, "
    )
    assert message.endswith(", boundary-linear")


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"loss='hinge' is unknown; known are bce, l1, .*, boundary-linear"):
        parse_loss("bce + 2*hinge")


@pytest.mark.parametrize(
    ("weight", "shown"),
    [("0", "0.0"), ("-0.5", "-0.5"), ("nan", "nan"), ("inf", "inf"), ("1e999", "inf"), ("1e-999", "0.0")],
)
def test_an_impossible_weight_is_an_error(weight, shown):
    with pytest.raises(OptionError, match=f"the loss l1 has the weight {shown}; give a finite number above 0"):
        parse_loss(f"bce + {weight}*l1")


def test_a_name_given_twice_is_an_error():
    with pytest.raises(OptionError, match="the loss l1 is given twice"):
        parse_loss("l1 + bce + 2*l1")


def test_a_loss_without_terms_is_an_error():
    with pytest.raises(OptionError, match="no terms; give one or more of bce"):
        Loss(())


@pytest.fixture
def without_the_library(monkeypatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "segmentation_models_pytorch"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)


@pytest.mark.parametrize("name", [*RATIOS, "lovasz"])
@pytest.mark.usefixtures("without_the_library")
def test_a_missing_library_is_an_error_that_says_what_to_install(name):
    message = rf"the loss {name} needs segmentation-models-pytorch, .* pip install 'refine-masks\[train\]'"
    with pytest.raises(OptionError, match=message):
        parse_loss(f"bce + {name}")


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {*RATIOS, "lovasz"}))
@pytest.mark.usefixtures("without_the_library")
def test_the_other_losses_do_not_need_the_library(name):
    assert value(name, torch.zeros(1, 1, 8, 8), square(8)) > 0


def test_the_library_is_imported_for_its_own_losses_alone():
    code = (
        "import sys, torch; from refine.training.losses import CRM, parse_loss; x = torch.zeros(1, 1, 8, 8)\n"
        "parse_loss(CRM + ' + boundary')(x, x)\n"
        "sys.exit(sorted({'segmentation_models_pytorch', 'timm', 'torchvision'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Sums


def test_the_terms_are_the_weighted_losses_in_the_order_given_and_sum_to_the_loss():
    logit, truth = random_logit(2, 1, 16, 16), square().expand(2, -1, -1, -1)
    loss = parse_loss("2*focal + bce + 0.25*boundary")
    terms = loss.terms(logit, truth)
    assert tuple(terms) == loss.names == ("focal", "bce", "boundary")
    for (name, weight), term in zip(loss.weights, terms.values(), strict=True):
        assert term.shape == ()
        assert float(term) == pytest.approx(weight * value(name, logit, truth), rel=1e-6)
    assert float(loss(logit, truth)) == pytest.approx(sum(map(float, terms.values())), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_rising_loss_has_the_share_of_its_weight_that_is_done_and_others_all_of_it(name):
    logit, truth = random_logit(1, 1, 16, 16), square()
    loss = parse_loss(f"0.5*{name}")
    end = float(loss(logit, truth, 1.0))
    for progress in (0.0, 0.25, 1.0):
        share = progress if name == "boundary-linear" else 1.0
        assert float(loss(logit, truth, progress)) == pytest.approx(share * end, rel=1e-6)
    assert end == pytest.approx(0.5 * value(name.removesuffix("-linear"), logit, truth), rel=1e-6)
    assert (name in RISING) == name.endswith("-linear")


def test_crms_loss_is_bit_for_bit_its_formula():
    logit, truth = random_logit(3, 1, 24, 24), (random_logit(3, 1, 24, 24, seed=1) > 0).float()
    p = logit.sigmoid()
    gradients = gradient_magnitude(p) - gradient_magnitude(truth)
    expected = (
        F.binary_cross_entropy_with_logits(logit, truth)
        + 0.5 * (p - truth).abs().mean()
        + 0.5 * (p - truth).square().mean()
        + 2.0 * gradients.abs().mean()
    )
    assert torch.equal(parse_loss(CRM)(logit, truth), expected)
    assert CRM == "bce + 0.5*l1 + 0.5*l2 + 2*gradient"


def test_crms_loss_is_least_for_the_truth():
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 1
    right = parse_loss(CRM)(40 * (truth - 0.5), truth)
    shifted = parse_loss(CRM)(40 * (truth.roll(1, 3) - 0.5), truth)
    unsure = parse_loss(CRM)(torch.zeros_like(truth), truth)
    assert right < 1e-3
    assert unsure > 0.5
    assert shifted > 0.5


def test_crms_loss_has_a_finite_gradient_where_nothing_varies():
    logit = torch.zeros(1, 1, 8, 8, requires_grad=True)
    parse_loss(CRM)(logit, torch.zeros(1, 1, 8, 8)).backward()
    assert logit.grad is not None
    assert logit.grad.isfinite().all()


# What holds for every loss


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("logits", ["50", "-50", "0", "right", "wrong", "random"])
@pytest.mark.parametrize("truths", [(0,), (1,), (0, 1), (0, 0), "square", "soft"], ids=str)
def test_losses_and_their_gradients_are_finite(name, logits, truths):
    if truths == "square":
        truth = square(8)
    elif truths == "soft":
        truth = random_logit(1, 1, 8, 8, seed=1).sigmoid()
    else:
        truth = torch.tensor(truths, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    sides = 100 * (truth - 0.5)
    known = {"right": sides, "wrong": -sides, "random": random_logit(*truth.shape)}
    logit = known[logits] if logits in known else torch.full(truth.shape, float(logits))
    logit = logit.clone().requires_grad_()
    loss = parse_loss(name)(logit, truth, progress=1.0)
    loss.backward()
    assert loss.isfinite()
    assert loss > -1e-6
    assert logit.grad is not None
    assert logit.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "truth", [torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8), square(8)], ids=["0", "1", "square"]
)
def test_the_perfect_prediction_has_the_loss_0(name, truth):
    assert value(name, 100 * (truth - 0.5), truth) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "gradient", *RATIOS])
def test_a_soft_truth_is_its_own_perfect_prediction(name):
    p = random_logit(2, 1, 16, 16).sigmoid()
    assert value(name, p.logit(), p) == pytest.approx(0, abs=2e-6)
    assert value(name, p.logit() + 0.5, p) > 1e-3


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_the_least_value_for_a_soft_truth_is_above_0(name):
    truth = torch.full((1, 1, 8, 8), 0.25)
    least = min(value(name, torch.full_like(truth, x), truth) for x in np.linspace(-5, 5, 101))
    assert least > 0.01
    if name == "bce":
        entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
        assert value(name, truth.logit(), truth) == pytest.approx(entropy, rel=1e-6) == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_prediction_has_a_lower_loss(name):
    truth = square(32)
    values = [value(name, 8 * (square(32, shift) - 0.5), truth) for shift in range(5)]
    assert values == sorted(values)
    assert len(set(values)) == 5


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"gradient", "boundary", "boundary-linear"}))
@pytest.mark.parametrize(
    "truth", [torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8), square(8)], ids=["0", "1", "square"]
)
def test_a_surer_prediction_on_the_right_side_has_a_lower_loss(name, truth):
    values = [value(name, scale * (truth - 0.5), truth) for scale in (1.9, 1, 0.5, -0.5, -1)]
    assert values == sorted(values)
    assert len(set(values)) == 5


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"gradient"}))  # which does not know inside from outside
def test_descent_reaches_the_truth(name):
    truth, logit = square(8), (0.1 * random_logit(1, 1, 8, 8)).requires_grad_()
    start = value(name, logit, truth)
    optimizer = torch.optim.Adam([logit], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        parse_loss(name)(logit, truth, 1.0).backward()
        optimizer.step()
    assert value(name, logit, truth) < 0.1 * start
    assert torch.equal((logit > 0).float(), truth)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_computed_in_float32(name):
    logit, truth = random_logit(2, 1, 16, 16), square().expand(2, -1, -1, -1)
    expected = parse_loss(name)(logit.bfloat16().float(), truth, 1.0)
    for dtype in (torch.bfloat16, torch.float32):
        given = logit.bfloat16().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = parse_loss(name)(given, truth.bfloat16(), 1.0)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        found.backward()
        assert given.grad is not None
        assert given.grad.dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
def test_windows_of_larger_crops_are_taken_as_they_are(name):
    logit, truth = random_logit(2, 1, 24, 24), (random_logit(2, 1, 24, 24, seed=1) > 0).float()
    window = (..., slice(4, 20), slice(3, 19))
    assert value(name, logit[window], truth[window]) == value(name, logit[window].clone(), truth[window].clone())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"lovasz"}))  # the library's, piecewise linear and in float32
def test_gradients_are_the_differences(name):
    logit = random_logit(2, 1, 6, 6).double().requires_grad_()
    truth = (random_logit(2, 1, 6, 6, seed=1) > 0).double()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, x.sigmoid(), truth), logit)


@pytest.mark.parametrize("name", ["lovasz", "boundary"])
def test_losses_of_sets_take_a_soft_truth_for_the_side_it_is_on(name):
    logit, truth = random_logit(1, 1, 16, 16), random_logit(1, 1, 16, 16, seed=1).sigmoid()
    assert value(name, logit, truth) == value(name, logit, (truth > 0.5).float())


@pytest.mark.parametrize(
    ("logit", "truth"),
    [((1, 1, 8, 8), (1, 1, 8, 9)), ((1, 1, 8, 8), (2, 1, 8, 8)), ((2, 2, 8, 8), (2, 2, 8, 8)), ((8, 8), (8, 8))],
)
def test_other_shapes_are_our_own_mistake(logit, truth):
    with pytest.raises(AssertionError):
        parse_loss("l1")(torch.zeros(logit), torch.zeros(truth))


# Their values


def test_bce_l1_and_l2_are_their_formulas():
    logit, truth = random_logit(2, 1, 8, 8), random_logit(2, 1, 8, 8, seed=1).sigmoid()
    p, t = (1 / (1 + np.exp(-logit.double().numpy()))), truth.double().numpy()
    assert value("bce", logit, truth) == pytest.approx(-np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)), rel=1e-6)
    assert value("l1", logit, truth) == pytest.approx(np.mean(np.abs(p - t)), rel=1e-6)
    assert value("l2", logit, truth) == pytest.approx(np.mean((p - t) ** 2), rel=1e-6)


def test_the_gradient_is_sobels():
    x = np.random.default_rng(0).random((9, 11), np.float32)
    dx, dy = (cv2.Sobel(x, cv2.CV_32F, *order)[1:-1, 1:-1] / 4 for order in ((1, 0), (0, 1)))
    found = gradient_magnitude(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, np.sqrt(dx**2 + dy**2 + 1e-6), atol=1e-5)


def test_the_gradient_loss_is_the_mean_difference_of_the_magnitudes():
    logit, truth = random_logit(1, 1, 9, 11), square(16)[..., :9, :11]
    magnitudes = []
    for x in (logit.sigmoid()[0, 0].numpy(), truth[0, 0].numpy()):
        dx, dy = (cv2.Sobel(x, cv2.CV_32F, *order)[1:-1, 1:-1] / 4 for order in ((1, 0), (0, 1)))
        magnitudes.append(np.sqrt(dx**2 + dy**2 + 1e-6))
    assert value("gradient", logit, truth) == pytest.approx(np.abs(magnitudes[0] - magnitudes[1]).mean(), abs=1e-5)


def test_ratios_of_areas_are_their_formulas():
    logit, truth = random_logit(3, 1, 16, 16), torch.cat((square(), square(shift=3), torch.zeros(1, 1, 16, 16)))
    tp, fp, fn = areas(logit, truth)
    tversky = 1 - tp / (tp + 0.3 * fp + 0.7 * fn)
    assert value("dice", logit, truth) == pytest.approx(1 - 2 * tp / (2 * tp + fp + fn), rel=1e-5)
    assert value("jaccard", logit, truth) == pytest.approx(1 - tp / (tp + fp + fn), rel=1e-5)
    assert value("tversky", logit, truth) == pytest.approx(tversky, rel=1e-5)
    assert value("focal-tversky", logit, truth) == pytest.approx(tversky**0.75, abs=4e-5)
    library = smp.losses.TverskyLoss("binary", alpha=0.3, beta=0.7, gamma=0.75)(logit, truth)
    assert value("focal-tversky", logit, truth) == pytest.approx(float(library), abs=4e-5)


def test_ratios_of_areas_agree_with_those_of_sets_for_binary_predictions():
    predicted, truth = square(shift=2), square()
    logit = 100 * (predicted - 0.5)
    p, t = predicted.bool().numpy(), truth.bool().numpy()
    assert value("jaccard", logit, truth) == pytest.approx(1 - (p & t).sum() / (p | t).sum(), rel=1e-6)
    assert value("dice", logit, truth) == pytest.approx(1 - 2 * (p & t).sum() / (p.sum() + t.sum()), rel=1e-6)


def test_missing_pixels_cost_more_than_surplus_ones_in_tverskys_loss():
    truth = square()
    smaller, larger = truth.clone(), truth.clone()
    smaller[..., 4, :] = 0
    larger[..., 3, 4:12] = 1
    for name in ("tversky", "focal-tversky"):
        assert value(name, 100 * (smaller - 0.5), truth) > 1.5 * value(name, 100 * (larger - 0.5), truth)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky"])
def test_without_any_truth_a_ratio_of_areas_is_the_mean_of_the_prediction(name):
    logit = random_logit(2, 1, 8, 8).requires_grad_()
    loss = parse_loss(name)(logit, torch.zeros(2, 1, 8, 8))
    assert loss.item() == pytest.approx(logit.sigmoid().mean().item(), rel=1e-6)
    loss.backward()
    assert logit.grad is not None
    assert (logit.grad > 0).all()


@pytest.mark.parametrize("name", [*RATIOS, "lovasz"])
def test_a_batch_is_one_picture_to_ratios_of_areas(name):
    logit, truth = random_logit(2, 1, 16, 16), torch.cat((square(), square(shift=3)))
    aside = [torch.cat(tuple(x), -1)[None] for x in (logit, truth)]
    assert value(name, logit, truth) == pytest.approx(value(name, *aside), rel=1e-5)


def test_the_focal_loss_is_its_formula_and_that_of_another_library():
    logit, truth = random_logit(2, 1, 16, 16), square().repeat(2, 1, 1, 1)
    p, t = logit.double().sigmoid().numpy(), truth.numpy()
    q, a = np.where(t == 1, p, 1 - p), np.where(t == 1, 0.25, 0.75)
    found = value("focal", logit, truth)
    assert found == pytest.approx(np.mean(-a * (1 - q) ** 2 * np.log(q)), rel=1e-5)
    assert found == pytest.approx(float(smp.losses.FocalLoss("binary", alpha=0.25, gamma=2.0)(logit, truth)), rel=1e-5)


def test_lovasz_loss_is_the_extension_of_the_jaccard_loss_of_sets():
    logit, truth = random_logit(1, 1, 5, 5), (random_logit(1, 1, 5, 5, seed=1) > 0).float()
    t = truth.bool().flatten().tolist()
    hinge = [max(0.0, 1 - x * (1 if y else -1)) for x, y in zip(logit.flatten().tolist(), t, strict=True)]

    def jaccard(wrong: set[int]) -> float:
        """Of the prediction that is wrong at these pixels."""
        truly = {i for i, y in enumerate(t) if y}
        predicted = truly ^ wrong
        return 1 - len(truly & predicted) / len(truly | predicted)

    expected, wrong = 0.0, set[int]()
    for i in sorted(range(len(t)), key=lambda i: -hinge[i]):
        expected += hinge[i] * (jaccard(wrong | {i}) - jaccard(wrong))
        wrong.add(i)
    assert value("lovasz", logit, truth) == pytest.approx(expected, rel=1e-5)


def test_lovasz_loss_is_the_jaccard_loss_where_every_hinge_is_0_or_1():
    predicted, truth = square(shift=2), square()
    logit = (2 * truth - 1) * (predicted == truth)  # the hinge is 0 where the prediction is right, 1 where it is wrong
    assert value("lovasz", logit, truth) == pytest.approx(value("jaccard", 100 * (predicted - 0.5), truth), rel=1e-5)


# The boundary loss


def test_distances_are_to_the_contour_between_the_pixels():
    truth = torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 0]).view(1, 1, 1, 8)
    assert distance_map(truth).flatten().tolist() == [2.5, 1.5, 0.5, -0.5, -1.5, -1.5, -0.5, 0.5]


@pytest.mark.parametrize("size", [(1, 2), (1, 40), (40, 1), (7, 9), (64, 48)])
def test_distances_are_scipys(size):
    masks = np.random.default_rng(0).random((3, 1, *size)) > 0.7
    masks[:, 0, 0, 0], masks[:, 0, -1, -1] = True, False
    for mask, found in zip(masks[:, 0], distance_map(torch.from_numpy(masks).float())[:, 0], strict=True):
        expected = np.where(mask, 0.5 - distance_transform_edt(mask), distance_transform_edt(~mask) - 0.5)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_the_opposite_mask_has_the_opposite_distances():
    truth = square(shift=1)
    assert torch.equal(distance_map(1 - truth), -distance_map(truth))


@pytest.mark.parametrize("level", [0.0, 0.25, 0.75, 1.0])
def test_without_a_contour_distances_loss_and_gradient_are_0(level):
    truth, logit = torch.full((1, 1, 8, 8), level), random_logit(1, 1, 8, 8).requires_grad_()
    assert not distance_map(truth).any()
    loss = parse_loss("boundary")(logit, truth)
    loss.backward()
    assert loss.item() == 0
    assert logit.grad is not None
    assert not logit.grad.any()


def test_the_contours_of_a_batch_are_its_pictures_own():
    truth = torch.cat((square(), torch.zeros(1, 1, 16, 16), square(shift=3)))
    assert torch.equal(distance_map(truth), torch.cat([distance_map(t[None]) for t in truth]))


@pytest.mark.parametrize("moved", [-4, -1, 0, 1, 3])
def test_the_boundary_loss_of_a_moved_edge_is_half_the_square_of_the_way(moved):
    truth, predicted = torch.zeros(2, 1, 1, 16, 16)
    truth[..., 8:] = 1
    predicted[..., 8 + moved :] = 1
    assert value("boundary", 100 * (predicted - 0.5), truth) == pytest.approx(moved**2 / 2 / 16, abs=1e-6)


def test_the_boundary_loss_has_the_gradient_of_the_mean_of_distance_times_probability():
    truth, logit = square(), random_logit(1, 1, 16, 16).requires_grad_()
    expected = torch.autograd.grad((distance_map(truth) * logit.sigmoid()).mean(), logit)
    found = torch.autograd.grad(parse_loss("boundary")(logit, truth), logit)
    assert torch.equal(*found, *expected)
