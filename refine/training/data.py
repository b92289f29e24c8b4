"""Crops of pictures with their truth and a coarse mask, reproducible by number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from refine.errors import OptionError
from refine.io import read_image
from refine.training.augment import colour_map, published_crop, published_jitter
from refine.training.coarse import DEFAULT_MIX, GIVEN, cascade_like, network_like, random_coarse, saved
from refine.training.compose import pasted, some_parts
from refine.training.folders import Pair, check_sizes, read_coarse, read_truth
from refine.training.guides import Guide, Shown, Wholes
from refine.training.scenes import scene


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A crop (size, size, 3 + k) with its truth (size, size), and a coarse mask of it if one lies beside the picture.

    shown: the part of a picture that it is; None of a generated scene, and of crops as published.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    beside: NDArray[np.float32] | None = None
    shown: Shown | None = None

    def flipped(self) -> "_Drawn":
        """Mirrored left to right."""
        shown = None if self.shown is None else replace(self.shown, flipped=True)
        beside = None if self.beside is None else self.beside[:, ::-1]
        return _Drawn(self.image[:, ::-1], np.ascontiguousarray(self.truth[:, ::-1]), beside, shown)


class Crops(Dataset[dict[str, Tensor]]):
    """Item i is drawn by a generator seeded with (seed, i), whatever came before: a run can be resumed anywhere.

    An item: ``image`` (3 + k, size, size) uint8, colours and what guides the network; ``truth``, ``coarse`` and
    ``fine`` (1, size, size) float32 in [0, 1]. The coarse mask is one of the crop, the fine one such as the cascade
    hands to its last scales. For a network with a deep branch also the tensors of `refine.training.guides.Wholes`.

    groups: pairs of each data set; shares: how often a group is drawn, relative to the others; scenes: the probability
    of a generated scene instead; coarse: shares of the kinds of coarse masks; augment: "broad", of any scale and mostly
    about the contour, or "published" (see `refine.training.augment`); composed: how often a picture is laid over
    another, and how often some parts of a truth are taken for all of it (see `refine.training.compose`); a third as
    often object and ground change places, all that but for pictures that come with their coarse mask; guide: makes the
    k channels of guidance, if any; whole: adds to an item what a deep branch reads, without scenes and compositions, of
    which there is no whole picture, and not as published; cache: bytes of pictures and truths that each process keeps,
    those used last; the items do not depend on it.

    Raises `OptionError` for a share of coarse masks that lie beside pictures where none does.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Pair]],
        shares: Sequence[float],
        *,
        size: int,
        seed: int,
        scenes: float = 0.0,
        coarse: Mapping[str, float] = DEFAULT_MIX,
        augment: str = "broad",
        composed: float = 0.0,
        guide: Guide | None = None,
        whole: Wholes | None = None,
        cache: int = 2 * 10**9,
    ) -> None:
        self.groups = groups
        self.shares = np.asarray(shares, np.float64) / np.sum(shares)
        self.given = coarse.get(GIVEN, 0.0) / sum(coarse.values())
        self.with_coarse = [[pair for pair in group if pair.coarse] for group in groups] if self.given else []
        if self.given and not any(share and group for share, group in zip(self.shares, self.with_coarse, strict=True)):
            raise OptionError(
                f"no picture that is drawn has a coarse mask <id>_seg.png beside it, as those of kind {GIVEN!r} are; "
                "leave the kind out, or give a folder with some (--data DIR)"
            )
        self.size = size
        self.scenes = scenes
        self.coarse = coarse
        self.published = augment == "published"
        self.composed = composed
        self.guide = guide
        self.whole = whole
        assert whole is None or not (scenes or composed or self.published)
        self.seed = seed
        self.cache = cache
        self._kept: dict[Path, NDArray[np.uint8]] = {}  # the last used comes last

    def check_sizes(self) -> None:
        """Raises `FileError` for masks that may be drawn and are not of their pictures' sizes; no pixels are read."""
        drawn = [pair for share, group in zip(self.shares, self.groups, strict=True) if share for pair in group]
        check_sizes(drawn, coarse=self.given > 0)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        given = self.given > 0 and rng.random() < self.given
        drawn = self._beside(rng) if given else self._drawn(rng)
        image, truth = drawn.image, drawn.truth
        if self.composed and not given:
            if rng.random() < self.composed:
                below = self._drawn(rng)
                image, truth = pasted((below.image, below.truth), (image, truth), rng)
            if rng.random() < self.composed:
                truth = some_parts(truth, rng)
            if rng.random() < self.composed / 3:
                truth = ~truth
        jittered = published_jitter if self.published else _jittered
        image = np.concatenate((jittered(np.ascontiguousarray(image[..., :3]), rng), image[..., 3:]), 2)
        if drawn.beside is None:
            coarse = random_coarse(truth, rng, self.coarse)
        else:  # soft as it lies there, or as it would be in another file
            coarse = drawn.beside if rng.random() < 0.5 else saved(drawn.beside, rng)
        if self.composed and rng.random() < 0.5:
            fine = cascade_like(truth, rng)
        else:
            fine = network_like(truth, rng, cell=float(rng.uniform(1.5, 7)))
        item = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "truth": torch.from_numpy(truth[None].astype(np.float32)),
            "coarse": torch.from_numpy(np.ascontiguousarray(coarse[None])),
            "fine": torch.from_numpy(fine[None]),
        }
        if self.whole is not None:
            assert drawn.shown is not None
            item |= self.whole(drawn.shown, coarse, rng)
        return item

    def _drawn(self, rng: np.random.Generator) -> _Drawn:
        """A crop of a picture or a generated scene, with its truth, mirrored by turns."""
        if rng.random() < self.scenes:
            image, truth = scene(rng, self.size, self.size)
            if self.guide is not None:
                everything = np.arange(self.size)
                image = np.concatenate((image, self.guide(image, truth, (everything, everything), rng, None)), 2)
            drawn = _Drawn(image, truth)
        else:
            group = self.groups[int(rng.choice(len(self.groups), p=self.shares))]
            pair = group[int(rng.integers(len(group)))]
            whole = self._image(pair.image)
            soft = self._truth(pair, whole.shape[:2])
            if self.published:
                drawn = _Drawn(*published_crop(whole, soft, self.size, rng))
            else:
                image, cropped, shown = self._crop(whole, soft, rng, pair.image)
                drawn = _Drawn(image, cropped > 127, shown=shown)
        return drawn.flipped() if rng.random() < 0.5 else drawn

    def _beside(self, rng: np.random.Generator) -> _Drawn:
        """A crop of a picture with its truth and one of the coarse masks beside it, mirrored by turns."""
        shares = self.shares * [len(group) > 0 for group in self.with_coarse]
        group = self.with_coarse[int(rng.choice(len(shares), p=shares / shares.sum()))]
        pair = group[int(rng.integers(len(group)))]
        path = pair.coarse[int(rng.integers(len(pair.coarse)))]
        whole = self._image(pair.image)
        truth = self._truth(pair, whole.shape[:2])
        coarse = self._recent(path, lambda: read_coarse(path, pair.image, truth.shape))
        image, soft, shown = self._crop(whole, np.dstack((truth, coarse)), rng, pair.image)
        beside = soft[..., 1].astype(np.float32) / np.float32(255)
        drawn = _Drawn(image, soft[..., 0] > 127, beside, replace(shown, mask=coarse, beside=True))
        return drawn.flipped() if rng.random() < 0.5 else drawn

    def _image(self, path: Path) -> NDArray[np.uint8]:
        return self._recent(path, lambda: read_image(path))

    def _truth(self, pair: Pair, size: tuple[int, int]) -> NDArray[np.uint8]:
        return self._recent(pair.truth, lambda: read_truth(pair, size))

    def _recent(self, path: Path, read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """What ``read`` gives for a file; it is asked again where there was no room to keep that."""
        array = self._kept.pop(path, None)
        if array is None:
            array = read()
            held = array.nbytes + sum(kept.nbytes for kept in self._kept.values())
            while self._kept and held > self.cache:
                held -= self._kept.pop(next(iter(self._kept))).nbytes
        self._kept[path] = array
        return array

    def _crop(
        self, image: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, name: Path
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Shown]:
        """A window of random scale, mostly centred on the truth's contour; mirrored where it leaves the picture.

        masks: the truth (H, W), or a first one of several (H, W, n). The picture's channels of guidance come behind its
        colours. The third is where the window lies.
        """
        truth = masks if masks.ndim == 2 else masks[..., 0]
        height, width = truth.shape
        native = max(height, width)
        largest = min(2.0 * native, 2800)
        longest = float(np.exp(rng.uniform(np.log(min(320, largest)), np.log(largest))))
        side = max(8, round(self.size * native / longest))  # px of the picture that the window spans
        y, x = int(rng.integers(height)), int(rng.integers(width))
        if rng.random() < 0.9:
            step = max(1, native // 500)  # a coarse look for the contour is enough to centre a window
            small = truth[::step, ::step] > 127
            found = np.argwhere(np.diff(small, axis=int(rng.integers(2))))
            if len(found):
                y, x = (step * int(k) for k in found[rng.integers(len(found))])
        y += int(rng.uniform(-0.35, 0.35) * side)
        x += int(rng.uniform(-0.35, 0.35) * side)
        top, left = (_placed(at, side, length) for at, length in ((y, height), (x, width)))
        window = np.s_[max(0, top) : top + side, max(0, left) : left + side]
        margins = (max(0, -top), max(0, top + side - height), max(0, -left), max(0, left + side - width))
        how = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        parts = []
        for whole in (image, masks):
            part = np.ascontiguousarray(whole[window])
            if any(margins):
                part = np.asarray(cv2.copyMakeBorder(part, *margins, cv2.BORDER_REFLECT), np.uint8)
            parts.append(np.asarray(cv2.resize(part, (self.size, self.size), interpolation=how), np.uint8))
        picture, cropped = parts
        if self.guide is not None:
            centres = ((np.arange(self.size) + 0.5) * side / self.size).astype(int)
            at = _mirrored(top + centres, height), _mirrored(left + centres, width)
            picture = np.concatenate((picture, self.guide(image, truth > 127, at, rng, name)), 2)
        return picture, cropped, Shown(image, name, truth, False, top, left, side, self.size)


def _mirrored(at: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Positions on an axis of ``length``, those beyond its ends mirrored at them."""
    at = at % (2 * length)
    return np.minimum(at, 2 * length - 1 - at)


def _placed(centre: int, side: int, length: int) -> int:
    """First pixel of a window of ``side`` px about ``centre``, within ``length`` px if it fits, else around them."""
    low, high = sorted((0, length - side))
    return int(np.clip(centre - side // 2, low, high))


def _jittered(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """``image`` with random brightness, contrast, saturation, warmth, and sometimes grey, noisy or JPEG-compressed."""
    saturation = 0.0 if rng.random() < 0.04 else rng.uniform(0.6, 1.4)
    contrast, brightness = rng.uniform(0.7, 1.3), rng.uniform(0.75, 1.25)
    mean = float(np.mean(colour_map(saturation, 1, 0)[:, :3] @ cv2.mean(image)[:3]))
    affine = colour_map(saturation, contrast, (brightness - contrast) * mean) * rng.uniform(0.92, 1.08, (3, 1))
    x = np.asarray(cv2.transform(image.astype(np.float32), affine), np.float32)
    if rng.random() < 0.2:
        x += rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(1, 8))
    if rng.random() < 0.15:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.2))), np.float32)
    y = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        _, coded = cv2.imencode(".jpg", np.ascontiguousarray(y), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))])
        y = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return y
