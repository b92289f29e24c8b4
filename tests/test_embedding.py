import numpy as np
import pytest
from conftest import features_of
from segment_anything.utils.transforms import ResizeLongestSide

from refine.embedding import SHAPE, Embedding
from refine.errors import InputError
from refine.guidance.proposals import reduced

SIZES = [(64, 64), (1, 1), (1, 3000), (37, 90), (90, 37), (700, 1500), (1501, 333), (1025, 2048), (6144, 1023)]


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_seen_at_the_size_that_the_library_gives_it(size):
    small = reduced(np.zeros((*size, 3), np.uint8)).shape[:2]
    assert Embedding(features_of(size), size).seen == ResizeLongestSide.get_preprocess_shape(*small, 1024)


@pytest.mark.parametrize("size", SIZES)
def test_cells_of_padding_alone_are_not_inside(size):
    found = Embedding(features_of(size), size)
    for cells, seen in zip(found.cells, found.seen, strict=True):
        assert 16 * (cells - 1) < seen <= 16 * cells
    assert found.inside.shape == (256, *found.cells)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("scale", [1, 1 / 2])
def test_a_cell_of_the_network_reads_the_features_of_its_own_place(size, stride, scale):
    embedding = Embedding(features_of(size), size)
    scaled = tuple(max(1, round(side * scale)) for side in size)
    axes = embedding.axes(scaled, stride)
    for axis, side, length, seen, cells in zip(axes, size, scaled, embedding.seen, embedding.cells, strict=True):
        assert len(axis) == -(-length // stride)
        pitch = 16 * side / seen  # px of the picture that a cell of SAM's spans
        wanted = (np.arange(len(axis)) + 0.5) * stride * side / length
        first, last = 0.5 * pitch, (cells - 0.5) * pitch
        found = (axis.low.numpy() + axis.fraction.numpy() + 0.5) * pitch
        np.testing.assert_allclose(found, wanted.clip(first, last), rtol=1e-5, atol=1e-4 * pitch)
        assert int(axis.high.max()) < cells


def test_a_mirrored_picture_that_fills_its_cells_is_read_mirrored():
    rows, columns = Embedding(features_of((600, 1200)), (600, 1200)).axes((600, 1200), 8)
    for axis, cells in ((rows, 32), (columns, 64)):
        found = axis.low + axis.fraction
        np.testing.assert_allclose(found, cells - 1 - found.flip(0), atol=1e-4)


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (np.zeros((256, 64, 32), np.float32), "(256, 64, 32); accepted is float32 (256, 64, 64)"),
        (np.zeros((1, *SHAPE), np.float32), "accepted is float32"),
        (np.zeros(SHAPE, np.uint8), "embedding: uint8"),
        (np.full(SHAPE, np.nan, np.float32), "NaN"),
    ],
)
def test_what_are_no_features_is_refused(features, told):
    with pytest.raises(InputError) as error:
        Embedding(features, (40, 50))
    assert told in str(error.value)
