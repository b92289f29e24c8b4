"""Segment Anything by its own library: proposals of a picture, masks of points, and the encoder's embedding.

Kirillov et al., Segment Anything, ICCV 2023. The network sees a picture at 1024 px longer side and makes masks of
256 x 256 cells, so it is given the picture reduced to `LONGER_SIDE`, and its masks stay at that size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from refine.devices import resolve_device, resolve_dtype
from refine.download import find
from refine.errors import InputError, OptionError
from refine.guidance.proposals import LONGER_SIDE, Proposal, Proposals, reduced
from refine.guidance.sam_model import load
from refine.io import PathLike
from refine.ranges import Ranged, within

if TYPE_CHECKING:
    from segment_anything import SamPredictor

LEAST: Final = 16
"""Px of a reduced picture's shorter side: a patch, the least that the encoder tells apart."""

Embedding = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class SamOptions(Ranged):
    """Where SAM is asked, and which of its answers are kept; defaults are the library's."""

    points_per_side: int = within(32, 1, 256)
    """Of the grid of points; each gives up to three masks."""

    predicted_iou: float = within(0.88, 0, 1)
    """Masks of which SAM thinks less are dropped; 0 keeps all."""

    stability: float = within(0.95, 0, 1)
    """Masks that a shift of the threshold changes more, by IoU, are dropped; 0 keeps all."""

    box_nms: float = within(0.7, 0, 1)
    """Of two masks whose boxes have a higher IoU only the better one is kept; 1 keeps both."""

    points_per_batch: int = within(0, 0, 1024)
    """Points answered at once; masks do not depend on it. Each needs 12 MB for its three answers, some times over. 0 is
    4 on a CPU, whose caches hold what they need, and the library's 64 elsewhere."""


class SegmentAnything:
    """SAM's weights on a device.

    checkpoint: a file of the library's layout; None is the downloaded one of ``name``. name: "sam-vit-b", "sam-vit-l"
    or "sam-vit-h", which the file must be; None takes what it is. device: as `refine.devices.resolve_device` has it,
    but "auto" is CUDA, else the CPU. dtype: of the network's products, as `refine.devices.resolve_dtype` has it, but
    "auto" is the library's float32 where the device is no CPU.

    Raises OptionError: neither a file nor a name is given, an unknown name or device, or Apple's GPU, which has no
    float64, in which the library gives it points.
    Raises WeightsError: the file is missing, damaged, no checkpoint of SAM or one of another type.
    """

    def __init__(
        self,
        checkpoint: PathLike | None = None,
        *,
        name: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        resolved = resolve_device(device)
        if resolved.type == "mps":
            if device != "auto":
                raise OptionError(f"device={device!r} is not possible with Segment Anything; give cpu")
            resolved = torch.device("cpu")
        self.device = resolved
        self.dtype = resolve_dtype("float32" if dtype == "auto" and resolved.type != "cpu" else dtype, resolved)
        if checkpoint is None:
            if name is None:
                raise OptionError("checkpoint=None and name=None say nothing; give a checkpoint's file, or a name")
            checkpoint = find(name)
        loaded = load(checkpoint, expected=name)
        self.network = loaded.network.to(self.device)
        for part in (self.network.image_encoder, self.network.mask_decoder):
            part.register_forward_hook(_as_float32)
        self.name, self.sha256 = loaded.name, loaded.sha256

    def encoder_settings(self) -> dict[str, Any]:
        """All that an embedding depends on beside the picture and the name."""
        library = f"segment-anything {version('segment-anything')}"
        dtype = str(self.dtype).removeprefix("torch.")
        return {"library": library, "weights": self.sha256, "longer_side": LONGER_SIDE, "dtype": dtype}

    def products(self) -> torch.autocast:
        """A context in which the network multiplies in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def embedding(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The encoder's features (256, 64, 64) of a picture (H, W, 3) RGB, which lies in their top left corner.

        Raises InputError: the picture is smaller than a patch.
        """
        predictor = self._predictor()
        with self.products():
            predictor.set_image(_seen(image))
        features: NDArray[np.float32] = predictor.get_image_embedding()[0].cpu().numpy()
        return features

    def prompted(self, image: NDArray[np.uint8], embedding: Embedding | None = None) -> "Prompted":
        """A picture (H, W, 3) RGB to be asked about; ``embedding`` gives its features where they are kept.

        Raises InputError: the picture is smaller than a patch.
        """
        small = _seen(image)
        features = (embedding or self.embedding)(image)
        predictor = self._predictor()
        # What the library's set_image leaves, without running the encoder again.
        predictor.original_size = small.shape[:2]
        predictor.input_size = predictor.transform.get_preprocess_shape(
            *small.shape[:2], predictor.transform.target_length
        )
        predictor.features = torch.from_numpy(features)[None].to(self.device)
        predictor.is_image_set = True
        return Prompted(self, predictor, image.shape[:2], small.shape[:2])

    def _predictor(self) -> "SamPredictor":
        from segment_anything import SamPredictor

        return SamPredictor(self.network)


@dataclass(frozen=True, eq=False)
class Prompted:
    """A picture that SAM has seen."""

    sam: SegmentAnything
    predictor: "SamPredictor"
    whole: tuple[int, int]
    """(H, W) of the picture."""
    size: tuple[int, int]
    """(h, w) of masks."""

    def mask(self, points: ArrayLike) -> tuple[NDArray[np.bool_], float]:
        """One mask (h, w) of what all points show, and the IoU that SAM predicts for it.

        points: (n, 2), y and x of pixels of the whole picture.

        Raises InputError: there are none, or some are outside.
        """
        given = np.asarray(points, np.float64)
        if given.ndim != 2 or given.shape[1] != 2 or not len(given):
            raise InputError(f"points: {given.shape}; accepted is (n, 2), y and x of pixels; give at least one")
        if np.any(given < 0) or np.any(given > np.array(self.whole) - 1):
            raise InputError(f"points: from {given.min(0)} to {given.max(0)}; the picture has {self.whole} px (H, W)")
        reduced_points = (given + 0.5) * np.array(self.size) / np.array(self.whole) - 0.5
        labels = np.ones(len(given), np.int32)
        # Of several points the library advises one answer, the first of the decoder's four.
        with self.sam.products():
            masks, confidences, _ = self.predictor.predict(reduced_points[:, ::-1], labels, multimask_output=False)
        return masks[0], float(confidences[0])


@dataclass(frozen=True, eq=False)
class SamProposals:
    """The library's automatic mask generator as a source of proposals."""

    sam: SegmentAnything
    options: SamOptions = field(default_factory=SamOptions)

    @property
    def name(self) -> str:
        return self.sam.name

    def settings(self) -> dict[str, Any]:
        options = self.options.as_dict()
        del options["points_per_batch"]
        return {**self.sam.encoder_settings(), **options}

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Masks of all that a grid of points shows, in a picture (H, W, 3) RGB; the best by predicted IoU first.

        Raises InputError: the picture is smaller than a patch.
        """
        from segment_anything import SamAutomaticMaskGenerator

        small = _seen(image)
        size: tuple[int, int] = small.shape[:2]
        generator = SamAutomaticMaskGenerator(
            self.sam.network,
            points_per_side=self.options.points_per_side,
            points_per_batch=self.options.points_per_batch or (4 if self.sam.device.type == "cpu" else 64),
            pred_iou_thresh=self.options.predicted_iou,
            stability_score_thresh=self.options.stability,
            box_nms_thresh=self.options.box_nms,
            output_mode="uncompressed_rle",  # a thousand masks as arrays would be a gigabyte
        )
        with self.sam.products():
            records = generator.generate(small)
        found = (
            Proposal.of_runs(
                record["segmentation"]["counts"],
                size,
                predicted_iou=record["predicted_iou"],
                stability=record["stability_score"],
            )
            for record in records
            if record["area"]  # where nothing is dropped, some masks are empty
        )
        return Proposals(tuple(found), size, self.name)


def _as_float32(part: torch.nn.Module, given: object, answer: Any) -> Any:
    """What a part of the network answers, in the type that the library takes to numpy."""
    return answer.float() if isinstance(answer, torch.Tensor) else tuple(value.float() for value in answer)


def _seen(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) RGB as the library is given it."""
    small = reduced(image)
    if min(small.shape[:2]) < LEAST:
        given, seen = (f"{height} x {width}" for height, width, _ in (image.shape, small.shape))
        raise InputError(
            f"picture: {given} px (H x W), of which SAM sees {seen}; both sides must be at least {LEAST} px, its "
            "patch; give a larger or less narrow one, or another source of proposals"
        )
    return small
