import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from refine import download
from refine.download import PUBLISHED, Published
from refine.errors import FileError, OptionError, WeightsError

CONTENT = bytes(range(256)) * 5000


class Server(ThreadingHTTPServer):
    """Gives one file and counts who asks for it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sent, self.status, self.asked = CONTENT, len(CONTENT), 200, 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.sent])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Published:
    """ "small", published by the server; the cache is empty."""
    url = f"http://127.0.0.1:{server.server_port}/folder/small.pth"
    entry = Published(url, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "none")
    monkeypatch.setitem(PUBLISHED, "small", entry)
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("REFINE_OFFLINE", raising=False)
    return entry


def kept(published: Published) -> list[str]:
    return sorted(path.name for path in published.path.parent.glob("*"))


def test_a_file_is_downloaded_once(published, server, tmp_path, capsys):
    path = download.fetch("small")
    assert path == tmp_path / "cache" / "weights" / "small.pth"
    assert path.read_bytes() == CONTENT
    assert "100%" in capsys.readouterr().err
    assert download.fetch("small") == download.find("small") == path
    assert server.asked == 1
    assert kept(published) == ["small.pth"]


def test_quiet_says_nothing(published, capsys):
    download.fetch("small", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_what_is_there_needs_no_network(published, server, monkeypatch):
    download.fetch("small", quiet=True)
    server.status = 500
    monkeypatch.setenv("REFINE_OFFLINE", "1")
    assert download.fetch("small") == published.path


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"\1" + CONTENT[1:], b""])
def test_a_damaged_file_is_told_and_replaced(published, damaged):
    published.path.parent.mkdir(parents=True)
    published.path.write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"damaged.*refine-cli weights get small"):
        download.find("small")
    assert download.fetch("small", quiet=True).read_bytes() == CONTENT
    assert kept(published) == ["small.pth"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"content": CONTENT[::-1]}, "not the published file, its SHA-256 is another"),
        ({"content": CONTENT[:1000], "sent": 1000}, "not the published file"),
        ({"sent": len(CONTENT) // 2}, "the download failed"),
        ({"status": 404}, "the download failed .*404"),
        ({"content": 3 * CONTENT, "sent": 3 * len(CONTENT)}, "sends more than the [0-9]+ bytes that are published"),
    ],
)
def test_a_failed_download_leaves_nothing(published, server, fault, reason):
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(WeightsError, match=f"{reason}.*--sam-checkpoint FILE"):
        download.fetch("small", quiet=True)
    assert kept(published) == []
    for name, value in {"content": CONTENT, "sent": len(CONTENT), "status": 200}.items():
        setattr(server, name, value)
    assert download.fetch("small", quiet=True).read_bytes() == CONTENT


def test_a_failed_download_leaves_what_was_there(published, server):
    published.path.parent.mkdir(parents=True)
    published.path.write_bytes(b"older")
    server.status = 503
    with pytest.raises(WeightsError):
        download.fetch("small", quiet=True)
    assert published.path.read_bytes() == b"older"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/small.pth", "http://"]
)  # requests' error of the second is a ValueError too
def test_a_server_that_is_not_there_is_told(published, monkeypatch, url):
    monkeypatch.setitem(PUBLISHED, "small", replace(published, url=url))
    with pytest.raises(WeightsError, match="the download failed"):
        download.fetch("small", quiet=True)


@pytest.mark.parametrize(("value", "forbids"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_offline_downloads_nothing_and_says_what_to_do(published, server, monkeypatch, value, forbids):
    monkeypatch.setenv("REFINE_OFFLINE", value)
    if forbids:
        with pytest.raises(WeightsError, match=r"REFINE_OFFLINE is set.*unset it, or download http.*save it as"):
            download.fetch("small", quiet=True)
    else:
        download.fetch("small", quiet=True)
    assert server.asked == (not forbids)


def test_missing_weights_name_both_ways(published):
    with pytest.raises(
        WeightsError, match=r"refine-cli weights get small, or give a local file \(--sam-checkpoint FILE"
    ):
        download.find("small")


@pytest.mark.parametrize("call", [download.find, download.fetch])
def test_unknown_weights_list_the_known_ones(call):
    with pytest.raises(OptionError, match="known are sam-vit-b, sam-vit-l, sam-vit-h"):
        call("sam-vit-x")


def test_a_folder_that_cannot_be_made_is_told_before_the_download(published, server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(FileError, match="cannot be made"):
        download.fetch("small", quiet=True)
    assert server.asked == 0


def test_the_cache_is_where_the_environment_says_else_where_the_platform_does(monkeypatch, tmp_path):
    monkeypatch.setenv("REFINE_CACHE", "~/cache")
    assert download.cache_dir() == Path.home() / "cache"
    monkeypatch.delenv("REFINE_CACHE")
    assert download.cache_dir().name == "refine"
    assert download.cache_dir().is_absolute()


def test_published_files_are_named_as_the_library_names_them():
    assert [entry.path.name for entry in PUBLISHED.values()] == [
        "sam_vit_b_01ec64.pth",
        "sam_vit_l_0b3195.pth",
        "sam_vit_h_4b8939.pth",
    ]
    assert all(len(bytes.fromhex(entry.sha256)) == 32 for entry in PUBLISHED.values())


def test_weights_get_prints_the_path(published, run):
    outcome = run("weights", "get", "small")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{published.path}\n", "")


def test_weights_get_of_a_failed_download_is_one_line(published, server, run):
    server.status = 404
    outcome = run("weights", "get", "small")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: small: the download failed")
    assert outcome.err.count("\n") == 1


def test_a_home_of_nobody_is_told(monkeypatch):
    monkeypatch.setenv("REFINE_CACHE", "~nosuchuser/x")
    with pytest.raises(OptionError, match="REFINE_CACHE='~nosuchuser/x': no such user's home; give a folder"):
        download.cache_dir()
