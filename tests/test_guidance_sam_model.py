import pytest
import torch
from conftest import small_sam
from segment_anything import sam_model_registry

from refine.errors import WeightsError
from refine.guidance import sam_model


@pytest.mark.parametrize(("side", "width", "depth"), [(256, 32, 2), (128, 48, 3), (1024, 16, 1)])
def test_a_saved_network_comes_back(tmp_path, side, width, depth):
    theirs = small_sam(side=side, width=width, depth=depth)
    torch.save(theirs.state_dict(), tmp_path / "sam.pth")
    ours = sam_model.load(tmp_path / "sam.pth")
    assert ours.name == f"sam-vit-{width}x{depth}"
    assert not ours.network.training
    assert not any(p.requires_grad for p in ours.network.parameters())
    assert repr(ours.network) == repr(theirs)
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = theirs.preprocess(255 * x)
        assert torch.equal(ours.network.preprocess(x), theirs.preprocess(x))  # buffers that no checkpoint has
        assert torch.equal(ours.network.image_encoder(x), theirs.image_encoder(x))


@pytest.mark.parametrize("name", sam_model.TYPES.values())
def test_published_types_are_told_by_their_shapes(name):
    with torch.device("meta"):
        theirs = sam_model_registry[name.removeprefix("sam-").replace("-", "_")]()
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    encoder = sam_model._encoder(shapes)
    assert sam_model.TYPES[encoder["embed_dim"], encoder["depth"]] == name
    assert encoder["global_attn_indexes"] == [i for i, b in enumerate(theirs.image_encoder.blocks) if not b.window_size]
    assert encoder["window_size"] == 14
    assert encoder["num_heads"] == theirs.image_encoder.blocks[0].attn.num_heads
    assert encoder["mlp_ratio"] == 4
    assert encoder["img_size"] == 1024


def test_half_precision_becomes_single(tmp_path):
    torch.save(small_sam().half().state_dict(), tmp_path / "sam.pth")
    assert sam_model.load(tmp_path / "sam.pth").network.image_encoder.pos_embed.dtype == torch.float32


def test_another_type_than_asked_for_is_refused(sam_file):
    assert sam_model.load(sam_file, expected="sam-vit-32x2").name == "sam-vit-32x2"
    with pytest.raises(WeightsError, match="holds sam-vit-32x2, and sam-vit-b was asked for"):
        sam_model.load(sam_file, expected="sam-vit-b")


def test_other_checkpoints_are_no_sam(tmp_path):
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"no checkpoint of Segment Anything, for image_encoder\.pos_embed"):
        sam_model.load(tmp_path / "other.pth")


def test_a_checkpoint_in_part_names_what_is_missing(tmp_path):
    state = small_sam().state_dict()
    state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"1 missing: mask_decoder\.iou_token\.weight"):
        sam_model.load(tmp_path / "part.pth")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("blocks.0.attn.rel_pos_h", (27, 0)),
        ("blocks.0.attn.rel_pos_h", (27, 64)),
        ("pos_embed", (1, 0, 0, 0)),
        ("pos_embed", (1, 16, 16, 33)),
    ],
)
def test_shapes_that_no_sam_has_are_refused(tmp_path, key, shape):
    state = small_sam().state_dict() | {f"image_encoder.{key}": torch.zeros(shape)}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth"):
        sam_model.load(tmp_path / "odd.pth")


def test_a_truncated_file_is_told(tmp_path, sam_file):
    content = sam_file.read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="not a whole one"):
        sam_model.load(tmp_path / "cut.pth")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": small_sam()}, tmp_path / "objects.pth")
    with pytest.raises(WeightsError, match="may run code"):
        sam_model.load(tmp_path / "objects.pth")
