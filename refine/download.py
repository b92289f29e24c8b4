"""Published weights that do not ship: where they are, what they must be, and the cache folder that keeps them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from refine.checkpoint import file_sha256
from refine.errors import OptionError, WeightsError, one_of, shown
from refine.io import check_folder

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Published:
    """A file that its makers publish."""

    url: str
    sha256: str
    bytes: int
    licence: str

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return cache_dir() / "weights" / self.url.rpartition("/")[2]

    @property
    def size(self) -> str:
        return f"{self.bytes / 1e6:.0f} MB"

    @property
    def there(self) -> str:
        """Whether it is kept, by its size alone: "downloaded", "no" or "damaged"; `fault` reads all of it."""
        if not self.path.is_file():
            return "no"
        return "downloaded" if self.path.stat().st_size == self.bytes else "damaged"

    def fault(self) -> str | None:
        """What is wrong with the file that is kept; None where it is whole."""
        if not self.path.is_file():
            return "not there"
        size = self.path.stat().st_size
        if size != self.bytes:
            return f"damaged, {size} bytes where {self.bytes} are published"
        digest = file_sha256(self.path)
        if digest != self.sha256:
            return f"damaged, SHA-256 {digest[:12]} where {self.sha256[:12]} is published"
        return None


_SAM = "https://dl.fbaipublicfiles.com/segment_anything"

# The library's page gives the addresses alone; the digits in the names begin the MD5. Sizes and SHA-256 are those that
# several projects that pin these files agree on, micro-sam and SlicerSegmentWithSAM among them; they were not taken
# from a download of our own.
PUBLISHED: Final[dict[str, Published]] = {
    "sam-vit-b": Published(
        f"{_SAM}/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
        "Apache-2.0",
    ),
    "sam-vit-l": Published(
        f"{_SAM}/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
        "Apache-2.0",
    ),
    "sam-vit-h": Published(
        f"{_SAM}/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
        "Apache-2.0",
    ),
}


def cache_dir() -> Path:
    """Folder of what can be had again: ``REFINE_CACHE``, else the one that the platform gives a user's programs."""
    given = os.environ.get("REFINE_CACHE")
    if given:
        try:
            return Path(given).expanduser()
        except RuntimeError as error:
            raise OptionError(f"REFINE_CACHE={shown(given)}: no such user's home; give a folder") from error
    from pooch import os_cache

    return Path(os_cache("refine"))


def offline() -> bool:
    """Whether ``REFINE_OFFLINE`` forbids the network."""
    return os.environ.get("REFINE_OFFLINE", "0") not in ("", "0")


def find(name: str) -> Path:
    """Path of downloaded weights, once their size and SHA-256 are the published ones; nothing is downloaded.

    Raises:
        OptionError: nothing of that name is published.
        WeightsError: they are not there or damaged; the message says how to get them.

    """
    one_of("weights", name, tuple(PUBLISHED))
    published = PUBLISHED[name]
    fault = published.fault()
    if fault is not None:
        raise WeightsError(
            f"{published.path}: the weights {name!r} are {fault}; download them ({published.size}) with refine-cli "
            f"weights get {name}, or give a local file (--sam-checkpoint FILE)"
        )
    return published.path


def fetch(name: str, *, quiet: bool = False) -> Path:
    """Path of published weights, which are downloaded where they are not there or damaged.

    The file appears when it is whole and has the published SHA-256. quiet: no progress on stderr.

    Raises:
        OptionError: nothing of that name is published.
        FileError: the cache folder cannot be written.
        WeightsError: ``REFINE_OFFLINE`` is set, the download failed, or it gave something else.

    """
    one_of("weights", name, tuple(PUBLISHED))
    published = PUBLISHED[name]
    if published.fault() is None:
        return published.path
    remedy = (
        f"download {published.url} elsewhere and give the file (--sam-checkpoint FILE), or save it as {published.path}"
    )
    if offline():
        raise WeightsError(f"{name}: REFINE_OFFLINE is set, so nothing is downloaded; unset it, or {remedy}")
    check_folder(published.path.parent)
    import pooch
    from tqdm import tqdm

    class Limited:
        """A file that takes no more than what is published; a server can send without end."""

        def __init__(self, file: BinaryIO) -> None:
            self.file, self.left = file, published.bytes

        def write(self, data: bytes) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise WeightsError(
                    f"{name}: {published.url} sends more than the {published.bytes} bytes that are published, so it is "
                    f"not the published file; nothing of it is kept; try again, or {remedy}"
                )
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    def download(url: str, path: str, keeper: Any) -> None:
        with open(path, "wb") as file:
            pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK)(url, Limited(file), keeper)

    pooch.get_logger().setLevel("WARNING")  # it tells of every download on stderr; the bar does
    # A bar is asked for its truth, which one without a total does not have.
    with tqdm(total=published.bytes, disable=quiet, unit="B", unit_scale=True, desc=name, dynamic_ncols=True) as bar:
        try:
            pooch.retrieve(
                published.url,
                f"sha256:{published.sha256}",
                fname=published.path.name,
                path=published.path.parent,
                downloader=download,
            )
        except OSError as error:  # of the network too: those of requests are its subclasses, some of ValueError as well
            raise WeightsError(f"{name}: the download failed ({error}); try again, or {remedy}") from error
        except ValueError as error:
            raise WeightsError(
                f"{name}: what {published.url} gave is not the published file, its SHA-256 is another; nothing of it "
                f"is kept; try again, or {remedy}"
            ) from error
    return published.path
