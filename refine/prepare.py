"""Checks the input once, at the border: whatever a caller holds becomes one picture and one mask of the same size."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refine import arrays, io
from refine.errors import InputError
from refine.io import Source
from refine.pairs import OWN_MASK, check_not_itself
from refine.slides import MaskOf, Slide
from refine.tiffs import Georeference, elsewhere
from refine.values import meaning

if TYPE_CHECKING:
    from refine.planes import Plane


_OWN = f"mask: holds the same as the image; {OWN_MASK}"
_SEEN = 384  # px; longer side of the picture in which a mask's contour is compared with edges
_OFF = 7  # px of it; side of the square in which an edge is looked for
_CLEARLY = (
    1.4  # of 198 masks of photographs, given unturned, none was taken for a turned one; 144 turned ones were found
)
_TURNS = {
    2: "mask[:, ::-1]",
    3: "mask[::-1, ::-1]",
    4: "mask[::-1]",
    5: "mask.T",
    6: "np.rot90(mask, -1)",
    7: "mask[::-1, ::-1].T",
    8: "np.rot90(mask)",
}
_INVERSE = {6: 8, 8: 6}  # of EXIF's orientations; the others are their own


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
    image, coarse_mask = _held(image, "image"), _held(coarse_mask, "mask")
    picture = _picture(image, allow_large, white)
    if picture.turned or picture.orientation == 1:
        mask, told = _mask(coarse_mask, picture.rgb.shape[:2], allow_large)
        told += _of_frame(picture, mask)
    else:
        picture, mask, told = _turned_by_mask(picture, coarse_mask, allow_large)
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


def _held(given: NDArray[Any] | Source, name: str) -> NDArray[Any] | Source:
    """The array or the file that it holds, so that a stream is read once; itself of what holds none."""
    for taken in (arrays.plain, arrays.content):
        held = taken(given, name)
        if held is not None:
            return held
    return given


def _picture(image: NDArray[Any] | Source, allow_large: bool, white: float | None) -> io.Picture:
    image = _held(image, "image")
    if isinstance(image, np.ndarray):
        return io.picture_of(image, "image", white)
    return io.read_picture(image, allow_large=allow_large, white=white)


def _of_frame(picture: io.Picture, mask: NDArray[np.float32]) -> tuple[str, ...]:
    """A warning where a mask seems to be drawn on the picture as it is stored, and not as it is displayed."""
    turned = io.oriented(mask, picture.orientation)
    if picture.orientation == 1 or turned.shape != mask.shape:  # what has another shape does not fit, and says so
        return ()
    if not follows(picture.rgb, turned, mask):
        return ()
    return (
        f"the image is stored turned or mirrored (EXIF orientation {picture.orientation}), and the mask follows "
        f"its edges only as it is stored, not as it is displayed; if so, turn the mask: {_TURNS[picture.orientation]}",
    )


def _turned_by_mask(
    picture: io.Picture, coarse_mask: NDArray[Any] | Source, allow_large: bool
) -> tuple[io.Picture, NDArray[np.float32], tuple[str, ...]]:
    """A PIL image that was changed since it was opened and still has an EXIF orientation, in the frame of its mask.

    It may have been turned by hand, so it is taken as its pixels lie, unless the mask fits or follows it turned alone.
    """
    orientation, lies = picture.orientation, picture.rgb
    turned = io.oriented(lies, orientation)
    tag = f"the PIL image was changed since it was opened, and still has EXIF orientation {orientation}"
    remedy = "apply ImageOps.exif_transpose(image), which takes the tag off, before anything else"
    if turned.shape == lies.shape:
        mask, of_mask = _mask(coarse_mask, lies.shape[:2], allow_large)
        if follows(lies, mask, io.oriented(mask, _INVERSE.get(orientation, orientation))):
            return picture, mask, of_mask  # seen in the turned picture it would be the other one
        as_turned = follows(turned, mask, io.oriented(mask, orientation))
    else:
        try:
            return picture, *_mask(coarse_mask, lies.shape[:2], allow_large)
        except InputError as error:
            try:
                mask, of_mask = _mask(coarse_mask, turned.shape[:2], allow_large)
            except InputError:
                raise error from None
        as_turned = True
    what = "turned by it, as the mask fits" if as_turned else "as its pixels lie, not turned"
    told = f"{tag}; it is taken {what}; {remedy}"
    return replace(picture, rgb=turned if as_turned else lies), mask, (*of_mask, told)


def follows(image: NDArray[np.uint8], mask: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether a picture (H, W, 3) has edges along the contour of a mask (H, W), and clearly fewer along the other's.

    Looks at a reduced picture; along a contour counts the highest gradient within a few pixels, since coarse contours
    are off. Undecided, which is False, where the masks are nearly the same or the picture is flat or busy.
    """
    scale = min(1, _SEEN / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    colours = cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 1.5)
    gradient = np.hypot(cv2.Sobel(colours, cv2.CV_32F, 1, 0), cv2.Sobel(colours, cv2.CV_32F, 0, 1)).max(-1)
    inside = [cv2.resize(m, size, interpolation=cv2.INTER_AREA) > 0.5 for m in (mask, other)]
    union = np.count_nonzero(inside[0] | inside[1])
    if union == 0 or np.count_nonzero(inside[0] & inside[1]) > 0.9 * union:
        return False
    near = cv2.dilate(gradient, np.ones((_OFF, _OFF), np.uint8))
    cross = np.ones((3, 3), np.uint8)
    edges = []
    for one in inside:
        contour = cv2.morphologyEx(one.astype(np.uint8), cv2.MORPH_GRADIENT, cross) > 0
        if not contour.any():
            return False
        edges.append(float(near[contour].mean()))
    return edges[0] > _CLEARLY * edges[1] and edges[0] > _CLEARLY * float(near.mean())


def as_image(
    image: NDArray[Any] | Source, *, allow_large: bool = False, white: float | None = None
) -> NDArray[np.uint8]:
    """Picture (H, W, 3), contiguous uint8 RGB.

    Accepts arrays (H, W) and (H, W, 1 | 3 | 4) in RGB order (uint8; uint16, / 257 rounded; floats in [0, 1], * 255
    rounded; alpha is dropped), what `refine.arrays.plain` makes one of (torch tensors with channels first or last), and
    files: paths, bytes, open files and PIL images (EXIF orientation applied). ``white`` is the value that becomes 255,
    where it is not the highest of its type; integers of any type are accepted with it.

    Raises InputError: another shape, type or range; no pixels; NaN.
    Raises FileError: a file cannot be read, or is larger than ``io.MAX_PIXELS`` and ``allow_large`` is not set.
    """
    return _picture(image, allow_large, white).rgb


def as_mask(mask: NDArray[Any] | Source, size: tuple[int, int], *, allow_large: bool = False) -> NDArray[np.float32]:
    """Mask (H, W) float32 in [0, 1] of the picture's ``size`` (H, W).

    Accepts arrays (H, W) and (H, W, 1), (H, W, 3 | 4) where the colours are equal or nearly so, what
    `refine.arrays.plain` makes one of, paths, bytes, open files and PIL images. The values:

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
    mask = _held(mask, "mask")
    name = os.fsdecode(mask) if isinstance(mask, str | os.PathLike) else "mask"
    values = mask if isinstance(mask, np.ndarray) else io.read_mask(mask, allow_large=allow_large)
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
