import numpy as np
import pytest

from benchmarks import fixtures
from benchmarks.reference import SCALES, ReferenceCRM

needs_fixtures = pytest.mark.skipif(
    fixtures.folder() is None, reason="the parity fixtures are not part of a plain clone"
)


@pytest.fixture(scope="module")
def reference() -> ReferenceCRM:
    network = ReferenceCRM()
    network.load_published({f"module.{key}": value for key, value in fixtures.checkpoint().items()})
    return network


@needs_fixtures
@pytest.mark.parametrize("name", fixtures.PARITY_FILES)
def test_the_reference_gives_the_published_outputs_at_every_scale(reference, name):
    case = fixtures.parity(name)
    assert tuple(case.probabilities) == SCALES
    got = reference.refine(case.image, case.mask)
    for scale, wanted in case.probabilities.items():
        np.testing.assert_allclose(got[scale], wanted, rtol=0, atol=1e-4, err_msg=f"scale {scale}")


@needs_fixtures
def test_an_empty_mask_stays_empty(reference):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for p in reference.refine(image, np.zeros((40, 50), np.uint8)).values():
        assert not p.any()


def test_a_checkpoint_with_a_missing_key_is_refused():
    network = ReferenceCRM()
    state = network.state_dict()
    del state["feats.layer4.0.conv1.weight"]
    with pytest.raises(RuntimeError, match=r"feats\.layer4\.0\.conv1\.weight"):
        network.load_published(state)
