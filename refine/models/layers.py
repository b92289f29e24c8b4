"""Building blocks that the networks share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6}


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, activation.

    ``asymmetric`` pads a 3x3 convolution of stride 2 by (left 0, right 1, top 0, bottom 1), as Keras does for even
    sizes, instead of 1 on every side; pretrained MobileNetV2 features need it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        activation: str | None = "relu",
        eps: float = 1e-5,
        asymmetric: bool = False,
    ) -> None:
        super().__init__()
        padding = 0 if asymmetric else dilation * (kernel // 2)
        self.conv: nn.Conv2d = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=eps)
        self.activation = activation
        self.asymmetric = asymmetric

    def forward(self, x: Tensor) -> Tensor:
        if self.asymmetric:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.norm(self.conv(x))
        return x if self.activation is None else ACTIVATIONS[self.activation](x, inplace=not self.training)

    def valid(self, x: Tensor) -> Tensor:
        """The same without padding: its border has to be part of ``x``."""
        assert not self.asymmetric
        x = self.norm(F.conv2d(x, self.conv.weight, self.conv.bias, self.conv.stride, 0, self.conv.dilation))
        return x if self.activation is None else ACTIVATIONS[self.activation](x, inplace=not self.training)

    def fold(self) -> None:
        """Multiply the normalisation into the convolution (identity d: both are linear); evaluation mode only."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1x1, depthwise 3x3, project 1x1, add if shapes agree (arXiv 1801.04381, fig. 3b)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNorm(inputs, width, 1, activation="relu6", eps=1e-3))
        layers.append(
            ConvNorm(width, width, stride=stride, groups=width, activation="relu6", eps=1e-3, asymmetric=stride == 2)
        )
        layers.append(ConvNorm(width, outputs, 1, activation=None, eps=1e-3))
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class Residual(nn.Module):
    """A dense 3x3 convolution beside which the input passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def conv_norms(layers: nn.Sequential) -> list[ConvNorm]:
    """Those of a sequence, in its order."""
    return [layer for layer in layers if isinstance(layer, ConvNorm)]


def upsample_twice(x: Tensor) -> Tensor:
    """Bilinear enlargement by two at pixel centres; its stencil is local, so that tiles agree with the whole."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


STRIP = 2**16  # px of a strip: what lies between a stage's layers stays in a processor's cache


def halved_in_strips(stage: nn.Module, x: Tensor, reach: int) -> Tensor:
    """``stage(x)``, which halves x (B, C, h, w), by strips of rows, a third of the time for thin layers of large maps.

    reach: even, rows beyond a strip that its result may depend on.
    """
    height, width = x.shape[-2:]
    rows = max(2 * reach, STRIP // width // 2 * 2)
    if rows >= height:
        return stage(x)  # type: ignore[no-any-return]
    parts = []
    for top in range(0, height, rows):
        start = max(top - reach, 0)
        part = stage(x[:, :, start : top + rows + reach])
        parts.append(part[:, :, (top - start) // 2 : (top - start + rows) // 2])
    return torch.cat(parts, 2)


def fold_norms(network: nn.Module) -> None:
    """Fold every `ConvNorm` of ``network`` in place, for inference."""
    network.eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ConvNorm):
                module.fold()
