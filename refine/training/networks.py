"""Coarse masks as networks make them: small ones learn from some of the pictures and predict the others.

What a network gets wrong follows the picture: it takes the horse's shadow for the horse, and loses the leg that looks
like the fence. Masks made from a truth alone (`refine.training.coarse`) never do. Three small heads on MobileNetV2's
features, one of /16, one of /8 and one of /4 of what they see, are trained without the pictures that they then predict
(cross-validation), and asked twice: early, when they still err much, and at the end.
"""

import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from refine.errors import FileError, OptionError
from refine.io import check_folder, read_image, write_atomic, write_probability
from refine.models import preset
from refine.models.crm_s import Trunk
from refine.models.layers import ConvNorm
from refine.pairs import IMAGE_ENDING, MASK_ENDING, TRUTH_ENDING
from refine.training.card import terms_files
from refine.training.folders import Pair, read_truth, survey

_NUMBER: Final = re.compile(r"[-_]?\d+$")  # at the end of a frame's name

SEEN: Final = 384  # px of the square that a picture is reduced to
TOLD: Final = SEEN // 4  # px of the square that truths and predictions are compared at
WIDTH: Final = 64  # channels of a head
HEADS: Final = (2, 1, 0)  # how many of the trunk's maps at /4 and /8 a head leaves unread; all read /16


@dataclass(frozen=True)
class Predictions:
    """What one network predicted at one time: of how many pictures, and how many predictions were close enough."""

    fold: int
    step: int
    mean_iou: float
    pictures: int
    written: int
    seconds: float


def predict_masks(
    folders: Sequence[Path],
    out: Path,
    trunk: Trunk,
    *,
    folds: int = 4,
    steps: int = 700,
    least_iou: float = 0.55,
    seed: int = 0,
) -> Iterator[Predictions]:
    """Write ``out/<set>``, the pictures and truths of each folder with coarse masks ``<id>_seg0.png``, ... beside them.

    folders: of pairs (`refine.training.folders.survey`), called differently; of whatever layout, what is written has
    BIG's names in one folder, and those of sub-folders begin an id: ``bear/00000.jpg`` becomes ``bear-00000_im.jpg``.
    trunk: MobileNetV2's features, of three channels. folds: parts of the data; each is predicted by networks trained on
    the others. Pictures of a folder whose names differ in a last number alone, as the frames of a film, are in one
    part; but not where a set is one such folder, as a camera's ``IMG_0001``, ``IMG_0002``, ... steps: of 24 pictures,
    for each network; a set is drawn by the root of its number of pictures. least_iou: with the truth; a prediction
    below it is not written. A folder's file TERMS is copied.

    A picture needs 1.4 MB of memory meanwhile.

    Raises OptionError: two folders, or two pictures of one, would have one name; fewer pictures or sequences than
    folds; ``out/<set>`` is there already; a number is impossible (``steps`` below 4).
    Raises FileError, InputError: as `survey` and `refine.training.folders.read_truth`; a file cannot be written.
    """
    for option, value, least in (("steps", steps, 4), ("folds", folds, 2), ("seed", seed, 0)):
        if value < least:
            raise OptionError(f"{option}={value} is not possible; give a number from {least}")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise OptionError(f"folders {', '.join(names)}: two have one name; their sets would be mixed")
    for name in names:
        if (out / name).exists():
            raise OptionError(f"{out / name} is there already; remove it, or give another folder to write to")
    given = [one for name, folder in zip(names, folders, strict=True) for one in _pictures(name, folder, out / name)]
    parts = _parts(given, folds)
    check_folder(out)
    counts = Counter(one.set for one in given)
    shares = np.array([1 / np.sqrt(counts[one.set]) for one in given])
    trunk = trunk.eval().requires_grad_(False)
    seen = [_Seen.of(one.pairs[0], trunk) for one in given]  # of several truths, the first teaches
    for one in given:
        one.copy()
    for name, folder in zip(names, folders, strict=True):
        for terms in terms_files(folder):
            _copied(terms, str(out / name / terms.name))
    made = [0] * len(given)
    began = time.monotonic()
    for fold in range(folds):
        rest, held = np.flatnonzero(parts != fold), np.flatnonzero(parts == fold)
        for unread in HEADS:
            torch.manual_seed(seed + fold)  # of the weights that a head begins with
            head = _Head(unread)
            draw = np.random.default_rng((seed, fold, unread))
            for step in _trained(head, [seen[i] for i in rest], shares[rest], steps, draw):
                ious, written = [], 0
                for i in held:
                    soft = _predicted(head, seen[i])
                    ious.append(seen[i].iou(soft))
                    if ious[-1] >= least_iou:
                        write_probability(f"{given[i].prefix}{MASK_ENDING}{made[i]}.png", soft)
                        made[i] += 1
                        written += 1
                yield Predictions(fold, step, float(np.mean(ious)), len(held), written, time.monotonic() - began)


@dataclass(frozen=True)
class _Picture:
    """A picture of a set with its truths, and how the names of its files in the set's copy begin.

    film: what it shares with the other frames of a film; its own id if it is no frame.
    """

    set: str
    prefix: Path
    pairs: tuple[Pair, ...]
    film: str

    def copy(self) -> None:
        """Raises `FileError` for a file that cannot be read or written."""
        image = self.pairs[0].image
        _copied(image, f"{self.prefix}{IMAGE_ENDING}{image.suffix}")
        for i, pair in enumerate(self.pairs):
            number = i if len(self.pairs) > 1 else ""
            _copied(pair.truth, f"{self.prefix}{TRUTH_ENDING}{number}{pair.truth.suffix}")


def _copied(source: Path, target: str) -> None:
    try:
        data = source.read_bytes()
    except OSError as error:
        raise FileError(f"{source}: cannot be read ({error.strerror or error}); give a file that can be") from error
    write_atomic(target, lambda file: file.write(data))


def _pictures(name: str, folder: Path, out: Path) -> list[_Picture]:
    """The pictures of a set; an id is a picture's name after those of the folders that not all pictures lie in.

    Raises `OptionError` where two would have one id.
    """
    pairs: dict[Path, list[Pair]] = {}
    for pair in survey(folder).pairs:
        pairs.setdefault(pair.image, []).append(pair)
    common = os.path.commonpath([image.parent for image in pairs])
    stems = {image: image.stem.removesuffix(IMAGE_ENDING) for image in pairs}
    bare = {image: _NUMBER.sub("", stem) for image, stem in stems.items()}
    numbered = {bare[image] for image, stem in stems.items() if image.parent == Path(common) and bare[image] != stem}
    films = len(numbered - {""}) > 1  # else they may be all pictures of a camera
    named: dict[str, Path] = {}
    found = []
    for image, of in pairs.items():
        place = image.parent.relative_to(common).parts
        identity = "-".join((*place, stems[image]))
        other = named.setdefault(identity.lower(), image)  # on some disks upper and lower case are one
        if other is not image:
            raise OptionError(f"{other} and {image} would both be called {identity}; rename one of them")
        film = "-".join((*place, bare[image])) if place or (films and bare[image]) else identity
        found.append(_Picture(name, out / identity, tuple(of), film))
    return found


def _parts(given: Sequence[_Picture], folds: int) -> NDArray[np.int64]:
    """Which part each picture belongs to: one for all frames of a film, by turns in an order that says nothing.

    Raises `OptionError` for fewer films than folds.
    """
    films = {f"{one.set}/{one.film}" for one in given}
    if len(films) < folds:
        raise OptionError(
            f"folds={folds} is not possible: names that differ in a last number alone are one sequence, and the "
            f"{len(given)} pictures are {len(films)}; give fewer folds, other names, or more data"
        )
    order = sorted(films, key=lambda film: (zlib.crc32(film.encode()), film))
    parts = {film: i % folds for i, film in enumerate(order)}
    return np.array([parts[f"{one.set}/{one.film}"] for one in given])


@dataclass(frozen=True, eq=False)
class _Seen:
    """A picture as heads see it, and mirrored: maps (2, C, h, w) float16; its truth (96, 96) and size (H, W)."""

    maps: tuple[Tensor, ...]
    truth: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, pair: Pair, trunk: Trunk) -> "_Seen":
        image = read_image(pair.image)
        truth = cv2.resize(read_truth(pair, image.shape[:2]), (TOLD, TOLD), interpolation=cv2.INTER_AREA)
        small = cv2.resize(image, (SEEN, SEEN), interpolation=cv2.INTER_AREA)
        cascade = preset("crm-s").cascade
        mean, std = (np.asarray(values, np.float32) for values in (cascade.mean, cascade.std))
        x = torch.from_numpy((np.asarray(small, np.float32) / 255 - mean) / std).permute(2, 0, 1)
        with torch.inference_mode():
            maps = trunk(torch.stack((x, x.flip(2))))[1:]
        return cls(tuple(m.half() for m in maps), torch.from_numpy(truth).float() / 255, image.shape[:2])

    def iou(self, soft: NDArray[np.float32]) -> float:
        """Of a prediction (H, W) and the truth, both reduced."""
        small = cv2.resize(soft, (TOLD, TOLD), interpolation=cv2.INTER_AREA) > 0.5
        truth = self.truth.numpy() > 0.5
        return float((small & truth).sum() / max(1, (small | truth).sum()))


class _Head(nn.Module):
    """Logits (B, 1, h, w) of maps (B, 24, 4h, 4w), (B, 32, 2h, 2w) and (B, 96, h, w), at the finest that it reads."""

    def __init__(self, unread: int) -> None:
        super().__init__()
        wider = (ConvNorm(WIDTH, WIDTH, dilation=dilation) for dilation in (2, 4))
        self.deep = nn.Sequential(ConvNorm(96, WIDTH), *wider)
        self.whole = nn.Linear(WIDTH, WIDTH)
        self.then = ConvNorm(WIDTH, WIDTH)
        self.finer = nn.ModuleList(nn.Conv2d(n, WIDTH, 1) for n in (32, 24)[: 2 - unread])
        self.joined = nn.ModuleList(ConvNorm(WIDTH, WIDTH) for _ in self.finer)
        self.last = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        y = self.deep(coarse)
        y = y + self.whole(y.mean((2, 3)))[:, :, None, None]
        y = self.then(F.dropout2d(y, 0.2, self.training))
        for x, reduce, join in zip((middle, fine), self.finer, self.joined, strict=False):
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            y = join(F.relu(y + reduce(x)))
        return self.last(y)  # type: ignore[no-any-return]


def _trained(
    head: _Head, seen: Sequence[_Seen], shares: NDArray[np.float64], steps: int, draw: np.random.Generator
) -> Iterator[int]:
    """Train; gives the number of steps done when a quarter and when all of them are, the head then set to evaluate."""
    batch = min(24, len(seen))
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(1, steps + 1):
        head.train()
        chosen = [seen[i] for i in draw.choice(len(seen), batch, p=shares / shares.sum())]
        mirrored = draw.integers(2, size=batch).tolist()
        maps = [
            torch.stack([one.maps[k][m] for one, m in zip(chosen, mirrored, strict=True)]).float() for k in range(3)
        ]
        truth = torch.stack([one.truth.flip(1) if m else one.truth for one, m in zip(chosen, mirrored, strict=True)])
        with torch.autocast("cpu", torch.bfloat16):
            logit = head(*maps)
        logit = F.interpolate(logit.float(), size=(TOLD, TOLD), mode="bilinear", align_corners=False)[:, 0]
        p = logit.sigmoid()
        shared, either = (p * truth).sum((1, 2)), (p + truth - p * truth).sum((1, 2))
        loss = F.binary_cross_entropy_with_logits(logit, truth) + (1 - (shared + 1) / (either + 1)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step in (steps // 4, steps):
            head.eval()
            yield step


def _predicted(head: _Head, seen: _Seen) -> NDArray[np.float32]:
    """Probabilities (H, W) of a picture, in steps of 1/255, so that their files are small."""
    with torch.inference_mode():
        p = head(*(m[:1].float() for m in seen.maps)).sigmoid()[0, 0].numpy()
    p = np.asarray(cv2.resize(p, seen.size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
    return np.rint(255 * p) / np.float32(255)
