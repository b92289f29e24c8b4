"""Checks the input once, at the border: whatever a caller holds becomes one picture and one mask of the same size."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refine import io
from refine.errors import InputError
from refine.io import Source
from refine.pairs import OWN_MASK, check_not_itself
from refine.slides import MaskOf, Slide
from refine.tiffs import Georeference, elsewhere
from refine.values import meaning

if TYPE_CHECKING:
    from refine.planes import Plane


_OWN = f"mask: holds the same as the image; {OWN_MASK}"


@dataclass(frozen=True, eq=False)
class Pair:
    """A picture and its coarse mask, checked and of one size.

    Either array may share memory with what the caller gave: they are read, never written.
    """

    image: NDArray[np.uint8]
    """(H, W, 3) RGB, contiguous."""
    mask: NDArray[np.float32]
    """(H, W) in [0, 1], contiguous; soft where it was soft or has been enlarged."""
    georeference: Georeference | None = None
    """The image's place on Earth and resolution, if its file says them."""
    warnings: tuple[str, ...] = ()
    """What the caller should know of the files."""


def prepare(
    image: NDArray[Any] | Source,
    coarse_mask: NDArray[Any] | Source,
    *,
    allow_large: bool = False,
    white: float | None = None,
) -> Pair:
    """The picture and its coarse mask at the picture's size; see :func:`as_image` and :func:`as_mask`.

    Raises InputError: either is not what is accepted, or the mask does not fit the picture.
    Raises FileError: a file cannot be read, or is larger than ``io.MAX_PIXELS`` and ``allow_large`` is not set.
    """
    _check_not_itself(image, coarse_mask)
    picture = _picture(image, allow_large, white)
    mask, told = _mask(coarse_mask, picture.rgb.shape[:2], allow_large)
    _check_not_its_content(picture.rgb, mask)
    warnings = picture.warnings + told
    if picture.georeference is not None and not isinstance(coarse_mask, np.ndarray):
        warnings += elsewhere(picture.georeference, io.read_georeference(coarse_mask))
    return Pair(picture.rgb, mask, picture.georeference, warnings)


def _check_not_itself(image: NDArray[Any] | Source, mask: NDArray[Any] | Source) -> None:
    if isinstance(image, str | os.PathLike) and isinstance(mask, str | os.PathLike):
        check_not_itself(image, mask)
    same = image is mask
    if isinstance(image, np.ndarray) and isinstance(mask, np.ndarray) and image.shape == mask.shape and image.size:
        same |= image.dtype == mask.dtype and image.ndim == 3 and image.shape[2] > 1 and np.array_equal(image, mask)
    if same and (not isinstance(image, np.ndarray) or (image.size and (image != image.flat[0]).any())):
        raise InputError(_OWN)


def _check_not_its_content(rgb: NDArray[np.uint8], mask: NDArray[np.float32]) -> None:
    """Raises InputError for a picture of grey levels that are those of its mask, unless all are one."""
    grey = rgb[..., 0]
    if (grey[0] != np.rint(255 * mask[0])).any() or not all(np.array_equal(grey, rgb[..., c]) for c in (1, 2)):
        return
    if grey.min() < grey.max() and np.array_equal(grey, np.rint(255 * mask)):
        raise InputError(_OWN)


def _picture(image: NDArray[Any] | Source, allow_large: bool, white: float | None) -> io.Picture:
    if isinstance(image, np.ndarray):
        return io.picture_of(image, "image", white)
    return io.read_picture(image, allow_large=allow_large, white=white)


def as_image(
    image: NDArray[Any] | Source, *, allow_large: bool = False, white: float | None = None
) -> NDArray[np.uint8]:
    """Picture (H, W, 3), contiguous uint8 RGB.

    Accepts arrays (H, W) and (H, W, 1 | 3 | 4) in RGB order (uint8; uint16, / 257 rounded; floats in [0, 1], * 255
    rounded; alpha is dropped), paths and PIL images (as files: EXIF orientation applied). ``white`` is the value that
    becomes 255, where it is not the highest of its type; integers of any type are accepted with it.

    Raises InputError: another shape, type or range; no pixels; NaN.
    Raises FileError: a file cannot be read, or is larger than ``io.MAX_PIXELS`` and ``allow_large`` is not set.
    """
    return _picture(image, allow_large, white).rgb


def as_mask(mask: NDArray[Any] | Source, size: tuple[int, int], *, allow_large: bool = False) -> NDArray[np.float32]:
    """Mask (H, W) float32 in [0, 1] of the picture's ``size`` (H, W).

    Accepts arrays (H, W) and (H, W, 1), (H, W, 3 | 4) where the colours are equal or nearly so, paths and PIL images.
    The values:

    * bool, and integers up to 1: as they are;
    * 0 and one other integer: that is the object, whatever it is;
    * integers up to 255: value / 255;
    * uint16 above 255: value / 65535;
    * floats: as they are; they must lie in [0, 1].

    Beside 0 and a single label the full scale F (255, or 65535) is void, neither object nor background, and becomes
    0.5. A trimap {0, 128, 255} is soft.

    Label maps of several labels are refused. An integer mask above 1 is taken for one if one of these holds:

    * its highest value is below half of F (128 of 255, 32768 of 65535), or it has no other;
    * it reaches F = 255, has at most 32 distinct values, and those between are all below 64 (class ids, and 255 for
      "void"), unless they are few and scattered, as compression leaves them beside black;
    * of its values 9 to 246 (of 255; 1 to 254 where none is near 255) there are 2 to 64, and at least 90 % of their
      pixels are flat: equal to the pixel on their right and to the pixel below, of which those outside the mask do not
      count.

    A grey picture, or a part of one, is refused: less than 0.4 of its darker or of its brighter half is near black or
    near white, and at least 0.15 of what lies between are local extremes, by rows or by columns. A mask that was
    blurred, enlarged, compressed or predicted is none. What is refused all the same can be thresholded.

    The mask has the picture's size, or is smaller with the same aspect: some factor f takes each of the picture's sides
    to within one pixel of the mask's. A smaller one is enlarged bilinearly at pixel centres and stays soft.

    Raises InputError: another shape, type, range or size; a label map; no pixels; NaN.
    Raises FileError: a file cannot be read, or is larger than ``io.MAX_PIXELS`` and ``allow_large`` is not set.
    """
    return _mask(mask, size, allow_large)[0]


def _mask(
    mask: NDArray[Any] | Source, size: tuple[int, int], allow_large: bool
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """As :func:`as_mask`, with what the caller should know of the mask."""
    if isinstance(mask, np.ndarray):
        name, values = "mask", mask
    else:
        values = io.read_mask(mask, allow_large=allow_large)
        name = "mask" if isinstance(mask, Image.Image) else os.fsdecode(mask)
    values = _one_channel(values, name)
    _check_size(values.shape, size, name)
    found = meaning(lambda: [values], name)
    return enlarged(found.unit(values), size), (f"mask: {found.told}",) if found.told else ()


def enlarged(soft: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A mask (h, w) that `fits` at ``size`` (H, W): bilinear at pixel centres where it is smaller."""
    if soft.shape == size:
        return soft
    return np.asarray(cv2.resize(soft, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def mask_plane(mask: Slide, size: tuple[int, int]) -> "Plane":
    """A mask in a file as a plane of the picture's ``size``: enlarged as :func:`as_mask` does where it is smaller.

    Raises InputError: it does not fit the picture.
    """
    from refine.planes import at_centres  # which imports torch, and methods do without

    _check_size(mask.size, size, mask.name)
    plane: Plane = MaskOf(mask)
    if mask.size == size:
        return plane
    return at_centres(plane, size)


def _one_channel(values: NDArray[Any], name: str) -> NDArray[Any]:
    io.check_mask_shape(values.shape, name)
    return io.grey(values, name)


def fits(mask: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a mask of size (h, w) is one of a picture (H, W): of its size, or smaller with the same aspect."""
    (h, w), (H, W) = mask, image
    return h <= H and w <= W and _same_aspect(h, w, H, W)


def _check_size(mask: tuple[int, ...], image: tuple[int, int], name: str) -> None:
    if fits(mask, image):
        return
    (h, w), (H, W) = mask, image
    given = f"{name}: {h} x {w} does not fit the image of {H} x {W} (H x W)"
    if _same_aspect(H, W, h, w):
        raise InputError(
            f"{given}: it is the larger one; accepted are the image's size and smaller; shrink the mask, or pass the "
            "image at the mask's size"
        )
    if _same_aspect(w, h, H, W) or _same_aspect(H, W, w, h):
        raise InputError(
            f"{given}: one of them is turned by 90 degrees; files are read in the displayed frame (EXIF rotation "
            "applied); turn the other, as in np.rot90"
        )
    raise InputError(
        f"{given}; accepted are the image's size, or a smaller one of the same aspect (each side within one pixel); "
        "crop or pad the mask to the image's frame"
    )


def _same_aspect(h: int, w: int, H: int, W: int) -> bool:
    """Whether some f has |h - H f| <= 1 and |w - W f| <= 1: the intervals of f, times H W, overlap."""
    return max((h - 1) * W, (w - 1) * H) <= min((h + 1) * W, (w + 1) * H)
