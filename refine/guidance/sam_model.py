"""Segment Anything's network, as its library builds it, from a checkpoint of the library's layout.

The encoder is read off the checkpoint's shapes, so that a type never has to be said; prompt encoder and mask decoder
are the same in all types.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from refine import checkpoint
from refine.errors import WeightsError
from refine.io import PathLike

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor

TYPES: Final = {(768, 12): "sam-vit-b", (1024, 24): "sam-vit-l", (1280, 32): "sam-vit-h"}
"""Published types by width and depth of the encoder."""

_ENCODER = "image_encoder"
_READ = {  # what tells the encoder, and its dimensions
    "pos_embed": 4,  # (1, image_size / patch, the same, width)
    "patch_embed.proj.weight": 4,  # (width, 3, patch, patch)
    "neck.0.weight": 4,  # (channels, width, 1, 1)
    "blocks.0.attn.rel_pos_h": 2,  # (2 * cells - 1, width / heads); cells of a window, or of the picture
    "blocks.0.mlp.lin1.weight": 2,  # (ratio * width, width)
}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network with its weights."""

    network: "Sam"
    """Without gradients, on the CPU, float32."""
    name: str
    """ "sam-vit-b", "sam-vit-l" or "sam-vit-h"; of any other width and depth, "sam-vit-<width>x<depth>"."""
    sha256: str
    """Of the file."""


def load(file: PathLike, *, expected: str | None = None) -> Loaded:
    """Segment Anything with the weights of a checkpoint.

    expected: the name that it must have; None takes any.

    Raises:
        WeightsError: the file is missing, truncated, no checkpoint of Segment Anything, or one of another type.

    """
    loaded = checkpoint.load(file)
    shapes = {key: tuple(value.shape) for key, value in loaded.state.items()}
    given = {key: shapes.get(f"{_ENCODER}.{key}", ()) for key in _READ}
    odd = [key for key, n in _READ.items() if len(given[key]) != n or 0 in given[key]]
    if odd:
        raise WeightsError(
            f"{file}: no checkpoint of Segment Anything, for {_ENCODER}.{odd[0]} is missing or of another kind; give "
            "one as its library saves them"
        )
    encoder = _encoder(shapes)
    size = encoder["embed_dim"], encoder["depth"]
    name = TYPES.get(size, f"sam-vit-{size[0]}x{size[1]}")
    if expected not in (None, name):
        raise WeightsError(f"{file}: holds {name}, and {expected} was asked for; ask for {name}, or give another file")
    return Loaded(_filled(encoder, loaded.state, file), name, loaded.sha256)


def _encoder(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The library's arguments for the encoder that tensors of these shapes belong to."""
    own = {key.removeprefix(f"{_ENCODER}."): shape for key, shape in shapes.items() if key.startswith(f"{_ENCODER}.")}
    _, cells, _, width = own["pos_embed"]
    patch = own["patch_embed.proj.weight"][2]
    depth = len({match[1] for key in own if (match := re.match(r"blocks\.(\d+)\.", key))})
    positions = [own.get(f"blocks.{i}.attn.rel_pos_h", (0,))[0] for i in range(depth)]
    windows = [(n + 1) // 2 for n in positions if n != 2 * cells - 1]
    return {
        "img_size": cells * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // own["blocks.0.attn.rel_pos_h"][1],
        "mlp_ratio": own["blocks.0.mlp.lin1.weight"][0] / width,
        "out_chans": own["neck.0.weight"][0],
        "window_size": windows[0] if windows else 0,
        "global_attn_indexes": [i for i, n in enumerate(positions) if n == 2 * cells - 1],
    }


def _filled(encoder: dict[str, Any], state: "dict[str, Tensor]", file: PathLike) -> "Sam":
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    channels, side = encoder["out_chans"], encoder["img_size"]
    cells = side // encoder["patch_size"]
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    try:
        with torch.device("meta"):  # no numbers are drawn for weights that are then replaced
            network = Sam(
                ImageEncoderViT(**encoder, qkv_bias=True, use_rel_pos=True, norm_layer=norm),
                PromptEncoder(channels, (cells, cells), (side, side), mask_in_chans=16),
                MaskDecoder(
                    transformer_dim=channels,
                    transformer=TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=8, mlp_dim=2048),
                    num_multimask_outputs=3,
                    iou_head_depth=3,
                    iou_head_hidden_dim=256,
                ),
            )
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{file}: its shapes are none that Segment Anything can have ({error})") from error
    checkpoint.check(state, {key: tuple(value.shape) for key, value in network.state_dict().items()}, file)
    network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)
