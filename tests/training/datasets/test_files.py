import gzip
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bookserve.training.datasets import files
from bookserve.training.datasets.files import DataError, DataFile, DataRequest, DataUnavailableError

CONTENT = bytes(range(256)) * 2_000  # 512,000 bytes: many chunks


class Home(ThreadingHTTPServer):
    """A public home of data files that can misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.cuts = 0  # answers to cut in the middle
        self.honours_ranges = True
        self.ranges: list[str | None] = []  # the Range header of every request

    def file(self, name: str = "rows.bin") -> DataFile:
        url = f"http://127.0.0.1:{self.server_port}/{name}"
        return DataFile(name, url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "rows", _sha(b"plain rows"))


class Answer(BaseHTTPRequestHandler):
    server: Home

    def do_GET(self) -> None:
        if self.path != "/rows.bin":
            self.send_error(404)
            return
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.honours_ranges else 0
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def home() -> Iterator[Home]:
    with Home() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOOKSERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def test_a_file_is_downloaded_once_and_then_taken_from_the_cache(home: Home, cache: Path) -> None:
    first = files.obtain("rows", [home.file()], DataRequest("auto"))
    second = files.obtain("rows", [home.file()], DataRequest("real"))
    assert first == second == (cache / "rows.bin",)
    assert (cache / "rows.bin").read_bytes() == CONTENT
    assert len(home.ranges) == 1
    assert [path.name for path in cache.iterdir()] == ["rows.bin"]


def test_a_cut_download_goes_on_where_it_stopped(home: Home, cache: Path) -> None:
    home.cuts = 2
    assert files.download(home.file(), cache).read_bytes() == CONTENT
    assert home.ranges == [None, "bytes=256000-", "bytes=384000-"]


def test_what_an_earlier_process_left_is_gone_on_with(home: Home, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".rows.bin.part").write_bytes(CONTENT[:100_000])
    assert files.download(home.file(), cache).read_bytes() == CONTENT
    assert home.ranges == ["bytes=100000-"]


def test_a_home_without_ranges_is_read_from_the_start(home: Home, cache: Path) -> None:
    home.cuts, home.honours_ranges = 1, False
    assert files.download(home.file(), cache).read_bytes() == CONTENT


def test_a_damaged_start_is_thrown_away(home: Home, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".rows.bin.part").write_bytes(b"x" * 100_000)
    assert files.download(home.file(), cache).read_bytes() == CONTENT
    assert home.ranges == ["bytes=100000-", None]


def test_a_damaged_file_in_the_cache_is_replaced(home: Home, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "rows.bin").write_bytes(b"x" * len(CONTENT))
    assert files.download(home.file(), cache).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"x" * len(CONTENT), CONTENT + b"more"], ids=["other bytes", "too many"])
def test_foreign_bytes_are_refused_and_not_kept(home: Home, cache: Path, content: bytes) -> None:
    home.content = content
    with pytest.raises(DataUnavailableError, match=r"rows\.bin.*served other bytes"):
        files.download(home.file(), cache)
    assert not (cache / "rows.bin").exists()


def test_a_missing_file_names_its_address(home: Home, cache: Path) -> None:
    with pytest.raises(DataUnavailableError, match=r"/gone\.bin: Not Found"):
        files.download(home.file("gone.bin"), cache)


def test_a_dead_host_fails_within_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        release.wait(30)
        raise TimeoutError

    monkeypatch.setattr(files, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("socket.create_connection", hang)
    began = time.monotonic()
    with pytest.raises(DataUnavailableError, match="no answer from"):
        files.download(DataFile("rows.bin", "http://dead.invalid/rows.bin", 1, ""), cache)
    assert time.monotonic() - began < 5
    release.set()


def test_without_a_network_real_fails_and_auto_takes_the_sample_loudly(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = DataFile("rows.bin", "http://127.0.0.1:9/rows.bin", 1, "")  # the discard port: nothing listens
    with pytest.raises(DataUnavailableError, match="refused"):
        files.obtain("rows", [closed], DataRequest("real"))
    with caplog.at_level(logging.WARNING):
        assert files.obtain("rows", [closed], DataRequest("auto")) is None
    assert "THE REAL DATA SET 'rows' IS NOT AVAILABLE" in caplog.text


def test_sample_asks_nobody(home: Home, cache: Path) -> None:
    assert files.obtain("rows", [home.file()], DataRequest("sample")) is None
    assert home.ranges == []


@pytest.mark.parametrize("subfolder", ["", "rows"])
@pytest.mark.parametrize(("name", "content"), [("rows.bin", CONTENT), ("rows", b"plain rows")])
def test_data_dir_comes_first(
    home: Home, cache: Path, tmp_path: Path, subfolder: str, name: str, content: bytes
) -> None:
    folder = tmp_path / "mine" / subfolder
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    paths = files.obtain("rows", [home.file()], DataRequest("real", tmp_path / "mine"))
    assert paths == (folder / name,)
    assert home.ranges == []


def test_a_foreign_file_in_data_dir_is_an_error_even_for_auto(home: Home, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=rf"{tmp_path}/rows\.bin is damaged or another file"):
        files.obtain("rows", [home.file()], DataRequest("auto", tmp_path))


def test_data_dir_must_exist(home: Home, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        files.obtain("rows", [home.file()], DataRequest("auto", tmp_path / "nowhere"))


def test_a_file_missing_in_data_dir_is_downloaded(home: Home, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    paths = files.obtain("rows", [home.file()], DataRequest("auto", tmp_path / "mine"))
    assert paths == (cache / "rows.bin",)


def test_a_full_or_forbidden_cache_is_named(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataUnavailableError, match=r"cannot keep rows\.bin in .*file/rows"):
        files.download(home.file(), tmp_path / "file" / "rows")


def test_two_downloads_at_once_give_one_whole_file(home: Home, cache: Path) -> None:
    threads = [threading.Thread(target=files.download, args=(home.file(), cache)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache / "rows.bin").read_bytes() == CONTENT
    assert len(home.ranges) == 1


def test_the_cache_folder_follows_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOOKSERVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert files.cache_folder("rows") == Path("/somewhere/bookserve/rows")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder("rows") == Path.home() / ".cache/bookserve/rows"


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def packed_anew(home: Home, content: bytes = CONTENT) -> DataFile:
    """A file of which only the content is fixed; the home serves it in a packing of its own."""
    home.content = gzip.compress(content, 3)
    return DataFile("rows.bin", home.file().url, 0, "", "rows", _sha(CONTENT))


def test_a_file_that_is_packed_anew_is_known_by_its_content(home: Home, cache: Path) -> None:
    file = packed_anew(home)
    first = files.obtain("rows", [file], DataRequest("auto"))
    assert first == files.obtain("rows", [file], DataRequest("real")) == (cache / "rows.bin",)
    assert gzip.decompress((cache / "rows.bin").read_bytes()) == CONTENT
    assert len(home.ranges) == 1
    assert files.combined_sha256([file]) == files.combined_sha256([home.file()])  # whose bytes are that content


def test_a_cut_download_of_unknown_size_begins_anew(home: Home, cache: Path) -> None:
    file = packed_anew(home)
    home.cuts = 2
    assert files.obtain("rows", [file], DataRequest("real")) == (cache / "rows.bin",)
    assert home.ranges == [None, None, None]


@pytest.mark.parametrize("extra", [b"", b"garbage"])
def test_a_whole_file_of_unknown_size_that_was_not_renamed_is_no_obstacle(
    home: Home, cache: Path, extra: bytes
) -> None:
    file = packed_anew(home)
    cache.mkdir(parents=True)
    (cache / f".{file.name}.part").write_bytes(home.content + extra)
    assert gzip.decompress(files.download(file, cache).read_bytes()) == CONTENT


def test_other_content_of_unknown_size_is_refused(home: Home, cache: Path) -> None:
    file = packed_anew(home, CONTENT[:-1])
    with pytest.raises(DataUnavailableError, match="served other bytes than expected"):
        files.obtain("rows", [file], DataRequest("real"))


@pytest.mark.parametrize("name", ["rows.bin", "rows"])
def test_data_dir_may_hold_the_content_packed_or_plain(home: Home, tmp_path: Path, name: str) -> None:
    file = packed_anew(home)
    for good, content in ((True, CONTENT), (False, CONTENT[1:])):
        (tmp_path / name).write_bytes(gzip.compress(content, 9) if name == "rows.bin" else content)
        if good:
            assert files.obtain("rows", [file], DataRequest("real", tmp_path)) == (tmp_path / name,)
        else:
            with pytest.raises(DataError, match="damaged or another file"):
                files.obtain("rows", [file], DataRequest("real", tmp_path))
