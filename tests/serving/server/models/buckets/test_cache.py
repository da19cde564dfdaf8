"""The cache of fetched versions: whole or not at all, bounded, and shared with other servers."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bookserve.serving.server.models.buckets.cache import Cache, Entry, Fetch, Hold
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.bucket import Object, parse

ADDRESS = parse("s3://models/digits")


def files(*sizes: int, tag: str = "1") -> list[Object]:
    return [Object(f"file{number}", size, tag) for number, size in enumerate(sizes)]


def fetch(objects: Sequence[Object]) -> Fetch:
    def write(target: Path, reserve: Callable[[int], None]) -> Sequence[Object]:
        reserve(sum(item.size for item in objects))
        for item in objects:
            (target / item.name).write_bytes(b"x" * item.size)
        return objects

    return write


def never(target: Path, reserve: Callable[[int], None]) -> Sequence[Object]:
    raise AssertionError("fetched again")


def obtain(cache: Cache, version: int, *sizes: int) -> Hold:
    return cache.obtain(cache.entry(ADDRESS, version), files(*sizes), fetch(files(*sizes)))


def test_a_version_is_fetched_once_and_found_by_the_next_server(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    obtain(cache, 3, 10, 20).close()
    entry = cache.entry(ADDRESS, 3)
    assert sorted(path.name for path in entry.path.iterdir()) == ["file0", "file1"]
    assert (entry.path.parent.name, cache.versions(ADDRESS)) == ("digits", [3])
    again = Cache(tmp_path, 100)
    again.obtain(again.entry(ADDRESS, 3), files(10, 20), never).close()
    again.obtain(again.entry(ADDRESS, 3), None, never).close()


def test_a_version_that_is_another_in_the_bucket_is_fetched_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    obtain(cache, 3, 10).close()
    entry = cache.entry(ADDRESS, 3)
    cache.obtain(entry, files(11), fetch(files(11))).close()
    assert entry.holds(files(11))
    (entry.path / "file0").write_bytes(b"short")  # as after a crash of the machine
    assert cache.versions(ADDRESS) == []
    cache.obtain(entry, files(11), fetch(files(11))).close()
    assert cache.versions(ADDRESS) == [3]


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)

    def fails(target: Path, reserve: Callable[[int], None]) -> Sequence[Object]:
        reserve(60)
        (target / "file0").write_bytes(b"x" * 30)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache.obtain(cache.entry(ADDRESS, 3), files(60), fails)
    assert not list(tmp_path.rglob("file0"))
    obtain(cache, 4, 100).close()  # nor does it take room


def test_the_longest_unused_versions_make_room_but_none_that_is_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    for version, used in ((1, 30), (2, 10), (3, 20)):
        obtain(cache, version, 30).close()
        os.utime(cache.entry(ADDRESS, version).lock, (used, used))
    obtain(cache, 4, 10).close()
    assert cache.versions(ADDRESS) == [1, 2, 3, 4]  # 100 of 100 bytes
    os.utime(cache.entry(ADDRESS, 4).lock, (40, 40))
    obtain(cache, 5, 1).close()
    assert cache.versions(ADDRESS) == [1, 3, 4, 5]
    one = obtain(cache, 1, 30)
    obtain(cache, 6, 60).close()
    assert cache.versions(ADDRESS) == [1, 5, 6]
    with pytest.raises(ServingError, match=r"71 bytes, and 30 of the 100 .* in use \(--model_cache_max_bytes\)"):
        obtain(cache, 7, 71)
    obtain(cache, 7, 70).close()
    one.close()
    obtain(cache, 8, 100).close()
    assert cache.versions(ADDRESS) == [8]


@pytest.mark.parametrize(("size", "fits"), [(100, True), (101, False)])
def test_a_version_larger_than_the_cache_is_refused(tmp_path: Path, size: int, fits: bool) -> None:
    cache = Cache(tmp_path, 100)
    if fits:
        obtain(cache, 1, size).close()
        return
    with pytest.raises(ServingError, match=r"RESOURCE_EXHAUSTED: it has 101 bytes, and the cache holds 100"):
        obtain(cache, 1, size)


def test_a_version_in_use_is_not_replaced_by_other_content(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    held = obtain(cache, 3, 10)
    with pytest.raises(ServingError, match="in use by another server, with other content: versions never change"):
        obtain(cache, 3, 11)
    assert cache.versions(ADDRESS) == [3]
    held.close()


def test_two_servers_fetch_a_version_once(tmp_path: Path) -> None:
    cache, began, go_on = Cache(tmp_path, 100), threading.Event(), threading.Event()

    def slow(target: Path, reserve: Callable[[int], None]) -> Sequence[Object]:
        began.set()
        assert go_on.wait(20)
        return fetch(files(10))(target, reserve)

    def obtain_slowly() -> None:
        cache.obtain(cache.entry(ADDRESS, 3), files(10), slow).close()

    first = threading.Thread(target=obtain_slowly)
    first.start()
    assert began.wait(20)
    threading.Timer(0.2, go_on.set).start()
    cache.obtain(cache.entry(ADDRESS, 3), files(10), never).close()
    first.join()


def test_what_a_killed_server_was_fetching_is_cleared_away(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from bookserve.serving.server.models.buckets.cache import Cache\n"
        "from bookserve.serving.wire.bucket import Object, parse\n"
        "def fetch(target, reserve):\n"
        "    reserve(90); (target / 'file0').write_bytes(b'x' * 50); print('half', flush=True); time.sleep(60)\n"
        "cache = Cache(Path(sys.argv[1]), 100)\n"
        "cache.obtain(cache.entry(parse('s3://models/digits'), 3), [Object('file0', 90, '1')], fetch)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        cache = Cache(tmp_path, 100)
        with pytest.raises(ServingError, match="90 of the 100"):
            obtain(cache, 4, 20)
        process.send_signal(signal.SIGKILL)
    assert cache.versions(ADDRESS) == []
    obtain(cache, 4, 20).close()
    assert not list(tmp_path.rglob("*.part"))
    obtain(cache, 3, 30).close()
    assert cache.versions(ADDRESS) == [3, 4]


def test_versions_of_the_same_address_at_another_endpoint_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path, 100)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one")
    one = cache.entry(ADDRESS, 3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://two")
    assert one != cache.entry(ADDRESS, 3)
    assert isinstance(one, Entry)
