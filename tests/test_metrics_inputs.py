import numpy as np
import pytest

from refine import metrics
from refine.errors import InputError

OF_MASKS = [
    metrics.average_hausdorff_distance,
    metrics.balanced_average_hausdorff_distance,
    metrics.boundary_iou,
    metrics.confusion,
    metrics.f1,
    metrics.hausdorff_distance,
    metrics.iou,
    metrics.mean_boundary_accuracy,
    metrics.modified_average_hausdorff_distance,
    metrics.pixel_accuracy,
    metrics.precision,
    metrics.recall,
]
OF_PROBABILITIES = [metrics.average_precision, metrics.roc_auc]
OF_MATTES = [metrics.connectivity_error, metrics.gradient_error, metrics.mse, metrics.sad]


def noise(seed, shape=(30, 40)):
    return np.random.default_rng(seed).random(shape) > 0.7


@pytest.mark.parametrize("figure", OF_MASKS)
@pytest.mark.parametrize(
    "same",
    [
        lambda m: m.astype(np.uint8),
        lambda m: m.astype(np.int64),
        lambda m: np.where(m, 129, 128).astype(np.uint8),
        lambda m: m.astype(np.uint8) * 255,
        lambda m: m.astype(np.uint16) * 255,
        lambda m: np.where(m, 0.51, 0.5),
        lambda m: np.asfortranarray(m),
        lambda m: np.repeat(m, 2, 1)[:, ::2],
        lambda m: m.tolist(),
    ],
)
def test_every_accepted_kind_of_mask_means_the_same(figure, same):
    prediction, truth = noise(1), noise(2)
    assert figure(same(prediction), truth) == figure(prediction, same(truth)) == figure(prediction, truth)
    assert figure(same(prediction), same(truth)) == figure(prediction, truth)


@pytest.mark.parametrize("figure", OF_MASKS)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros((3, 5), bool), "bring all to the same"),
        (np.zeros((4, 5, 1), bool), r"shape \(4, 5, 1\)"),
        (np.zeros((0, 5), bool), "at least one pixel"),
        (np.full((4, 5), 2, np.uint8), "from 2 to 2"),
        (np.full((4, 5), -1), "from -1"),
        (np.full((4, 5), np.nan), "nan"),
        (np.full((4, 5), 1.5), r"to 1\.5"),
        (np.full((4, 5), "a"), "<U1"),
    ],
)
def test_what_is_no_mask_is_refused(figure, bad, reason):
    good = np.zeros((4, 5), bool)
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(InputError, match=reason):
            figure(*pair)


@pytest.mark.parametrize("figure", OF_PROBABILITIES + OF_MATTES)
@pytest.mark.parametrize(
    "same",
    [
        lambda p: p / np.float32(255),
        lambda p: p / 255,
        lambda p: (p / 255).astype(np.longdouble),
        lambda p: (p / np.float32(255)).astype(">f4"),
        lambda p: p.astype(np.int32),
        lambda p: np.asfortranarray(p),
        lambda p: p[:, ::-1][:, ::-1],
    ],
)
def test_every_accepted_kind_of_probability_or_matte_means_the_same(figure, same):
    values, truth = np.random.default_rng(1).integers(0, 256, (30, 40), np.uint8), noise(2)
    assert figure(same(values), truth) == pytest.approx(figure(values, truth), rel=1e-6)
    if figure in OF_MATTES:
        assert figure(truth, same(values)) == pytest.approx(figure(values, truth), rel=1e-6)


@pytest.mark.parametrize("figure", OF_PROBABILITIES + OF_MATTES)
def test_masks_are_probabilities_and_mattes_too(figure):
    prediction, truth = noise(1), noise(2)
    expected = figure(prediction.astype(np.float32), truth)
    for same in (prediction, prediction.astype(np.uint8), prediction.astype(np.float16), prediction.astype(int) * 255):
        assert figure(same, truth) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("figure", OF_PROBABILITIES + OF_MATTES)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros((3, 5)), "the prediction is|the probability is"),
        (np.zeros((4, 5, 1)), r"shape \(4, 5, 1\)"),
        (np.zeros((4, 0)), "at least one pixel"),
        (np.full((4, 5), 256), "from 256 to 256"),
        (np.full((4, 5), -1), "from -1"),
        (np.full((4, 5), np.nan), "nan"),
        (np.full((4, 5), -0.5), r"from -0\.5"),
        (np.full((4, 5), np.inf), "to inf"),
        (np.full((4, 5), "a"), "<U1"),
    ],
)
def test_what_is_no_probability_or_matte_is_refused(figure, bad, reason):
    with pytest.raises(InputError, match=reason):
        figure(bad, np.ones((4, 5), bool))


@pytest.mark.parametrize("figure", OF_MATTES)
def test_a_region_of_another_shape_is_refused(figure):
    matte = np.zeros((4, 5))
    with pytest.raises(InputError, match=r"region within is \(5, 4\)"):
        figure(matte, matte, within=np.ones((5, 4), bool))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros((3, 5), int), "bring all to the same"),
        (np.zeros((4, 5)), "of type float64; give a label map"),
        (np.zeros(5, int), r"shape \(5,\)"),
        (np.full((4, 5), 2**63, np.uint64), r"below 2\^63"),
    ],
)
def test_what_is_no_label_map_is_refused(bad, reason):
    good = np.zeros((4, 5), int)
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(InputError, match=reason):
            metrics.mean_iou(*pair)


def test_every_figure_is_public():
    assert {figure.__name__ for figure in OF_MASKS + OF_PROBABILITIES + OF_MATTES} <= set(metrics.__all__)
    assert all(hasattr(metrics, name) for name in metrics.__all__)
