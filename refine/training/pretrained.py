"""Pretrained MobileNetV2 features as a starting point of crm-s's trunk."""

from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor, nn

from refine.errors import WeightsError
from refine.models.crm_s import Trunk
from refine.models.layers import ConvNorm, InvertedResidual


def load_mobilenet_v2(trunk: Trunk, path: Path) -> None:
    """Copy ImageNet features, stored as an .npz of Keras' names, into ``trunk``, in place.

    Input channels beyond RGB (the mask, guidance) start at zero.

    Raises `WeightsError` for a file that is no such archive, or where a name is missing or a shape differs.
    """
    if not path.is_file():
        without = "or train without, --set 'pretrained=\"\"'"
        raise WeightsError(f"pretrained features {path} do not exist; give the path of mobilenetv2.npz, {without}")
    if not is_zipfile(path):
        raise WeightsError(f"{path}: no .npz, or not a whole one; give the path of mobilenetv2.npz")
    with np.load(path, allow_pickle=False) as arrays:
        first, block = trunk.first[0], trunk.first[1]
        assert isinstance(first, ConvNorm)
        assert isinstance(block, InvertedResidual)
        _copy(first, arrays, "Conv1", "bn_Conv1")
        _copy_block(block, arrays, "expanded_conv")
        blocks = [module for level in trunk.levels for module in level.children()]  # type: ignore[union-attr]
        for number, module in enumerate(blocks, start=1):
            assert isinstance(module, InvertedResidual)
            _copy_block(module, arrays, f"block_{number}")


def _copy_block(block: InvertedResidual, arrays: "np.lib.npyio.NpzFile", name: str) -> None:
    parts = ("expand", "depthwise", "project")[-len(block.layers) :]
    for layer, part in zip(block.layers, parts, strict=True):
        assert isinstance(layer, ConvNorm)
        _copy(layer, arrays, f"{name}_{part}", f"{name}_{part}_BN")


def _copy(layer: ConvNorm, arrays: "np.lib.npyio.NpzFile", kernel: str, norm: str) -> None:
    assert isinstance(layer.norm, nn.BatchNorm2d)
    depthwise = layer.conv.groups > 1
    weight = _array(arrays, f"{kernel}/{'depthwise_kernel' if depthwise else 'kernel'}")
    with torch.no_grad():
        layer.conv.weight.zero_()
        if weight.shape[0] != layer.conv.weight.shape[0] or weight.shape[2:] != layer.conv.weight.shape[2:]:
            raise WeightsError(f"{kernel} has shape {tuple(weight.shape)}, not {tuple(layer.conv.weight.shape)}")
        layer.conv.weight[:, : weight.shape[1]] = weight
        layer.norm.weight.copy_(_array(arrays, f"{norm}/gamma"))
        layer.norm.bias.copy_(_array(arrays, f"{norm}/beta"))
        assert layer.norm.running_mean is not None
        assert layer.norm.running_var is not None
        layer.norm.running_mean.copy_(_array(arrays, f"{norm}/moving_mean"))
        layer.norm.running_var.copy_(_array(arrays, f"{norm}/moving_variance"))


def _array(arrays: "np.lib.npyio.NpzFile", name: str) -> Tensor:
    if name not in arrays.files:
        raise WeightsError(
            f"pretrained features lack {name}; give MobileNetV2 of width 1.0 with Keras' names, kernels (out, in, h, w)"
        )
    try:
        return torch.from_numpy(arrays[name].astype(np.float32))
    except (ValueError, BadZipFile) as error:
        raise WeightsError(f"pretrained features: {name} is damaged ({error}); fetch mobilenetv2.npz again") from error
