"""`bookserve models pack` and `unpack`: the same bytes for the same version, and nothing foreign gets in."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from bookserve.export import manifest as manifests
from bookserve.export.errors import StoreError
from bookserve.export.life import archive
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore

Invoke = Callable[..., Result]
GRAPH = "assets.extra/model.onnx"


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    """Another, empty store."""
    return ModelStore(tmp_path / "other")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_moves_to_another_store_as_it_is(
    store: ModelStore, other: ModelStore, invoke: Invoke, tmp_path: Path
) -> None:
    name = "score.tar.gz"
    packed = invoke("models", "pack", "score", tmp_path / name, "--models-dir", store.root)
    assert packed.exit_code == 0, packed.output
    assert packed.output == f"score version 2 is in {tmp_path / name}, {(tmp_path / name).stat().st_size} bytes\n"
    result = invoke("models", "unpack", tmp_path / name, "--models-dir", other.root)
    assert result.output == f"score version 2 is published as {other.root}/score/2\n"
    assert content(other.path("score", 2)) == content(store.path("score", 2))
    assert "score" in (other.root / "models.config").read_text()
    assert list((other.root / "score").iterdir()) == [other.root / "score/2"]
    again = invoke("models", "unpack", tmp_path / name, "--models-dir", other.root)
    assert again.output == f"score version 2 is in {other.root} already\n"


def test_the_same_version_gives_the_same_bytes(store: ModelStore, tmp_path: Path) -> None:
    name = "score.tar.gz"
    archive.pack(store, "score", 1, tmp_path / name)
    copy = ModelStore(tmp_path / "copy")
    shutil.copytree(store.root, copy.root, copy_function=shutil.copyfile)
    for path in copy.path("score", 1).rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1e9, 1e9))
    (copy.path("score", 1) / "batching_params.pbtxt").write_text("max_batch_size { value: 8 }")
    (tmp_path / "elsewhere").mkdir()
    assert archive.pack(copy, "score", 1, tmp_path / "elsewhere" / name) == ["batching_params.pbtxt"]
    assert (tmp_path / "elsewhere" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [name]


def test_tar_reads_it_too(store: ModelStore, tmp_path: Path) -> None:
    archive.pack(store, "score", 1, tmp_path / "score.tar.gz")
    subprocess.run(["tar", "-xzf", tmp_path / "score.tar.gz", "-C", tmp_path], check=True)
    assert content(tmp_path / "score/1") == content(store.path("score", 1))


def test_a_number_that_is_taken_leads_to_the_next(
    store: ModelStore, publish: Callable[..., Manifest], invoke: Invoke, tmp_path: Path
) -> None:
    other = ModelStore(tmp_path / "other")
    publish(other, bias=3.0)
    archive.pack(store, "score", 1, tmp_path / "score.tar.gz")
    result = invoke("models", "unpack", tmp_path / "score.tar.gz", "--models-dir", other.root)
    assert result.output == f"score version 2 is published as {other.root}/score/2\n"
    assert other.manifest("score", 2) == replace(store.manifest("score", 1), version=2)
    result = invoke("models", "unpack", tmp_path / "score.tar.gz", "rating", "--models-dir", other.root)
    assert result.output == f"rating version 1 is published as {other.root}/rating/1\n"
    assert other.manifest("rating", 1).model == "rating"


def test_an_older_version_does_not_end_a_rollback(
    store: ModelStore, publish: Callable[..., Manifest], tmp_path: Path
) -> None:
    other = ModelStore(tmp_path / "other")
    archive.pack(store, "score", 1, tmp_path / "1.tar")
    archive.pack(store, "score", 2, tmp_path / "2.tar")
    archive.unpack(other, tmp_path / "2.tar")
    publish(other)
    other.roll_back("score", 2)
    archive.unpack(other, tmp_path / "1.tar")
    assert (other.versions("score"), other.default_version("score")) == ([1, 2, 3], 2)


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def write(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as file:
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(member("score/2/../../../evil", b"x")), "'../../../evil' is no path inside a version"),
        (lambda m: m.append(member("/etc/evil", b"x")), "/etc/evil is not below score/2/"),
        (lambda m: m.append(member("score/2//etc/evil", b"x")), "'/etc/evil' is no path inside a version"),
        (lambda m: m.append(member("score/2/a\\b", b"x")), "is no path inside a version"),
        (lambda m: m.append(member("score/2/weights.bin", b"x")), "weights.bin is not in the manifest"),
        (lambda m: m.append(member(f"score/3/{GRAPH}", b"x")), "is not below score/2/"),
        (lambda m: m.append(m[1]), f"holds {GRAPH} twice"),
        (lambda m: m.append(m[0]), "holds assets.extra/manifest.json twice"),
        (lambda m: m.append(member("score/2/l", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "is no plain file"),
        (lambda m: m.append(member("score/2/h", type=tarfile.LNKTYPE, linkname=GRAPH)), "is no plain file"),
        (lambda m: m.append(member("score/2/c", type=tarfile.CHRTYPE)), "is no plain file"),
        (lambda m: m.append(member("score/2/f", type=tarfile.FIFOTYPE)), "is no plain file"),
        (lambda m: m.append(member("score/2/d", type=tarfile.DIRTYPE)), "is no plain file"),
        (lambda m: m.append(member("score/2/x", b"9 a=b\n", type=tarfile.XHDTYPE)), "is no plain file"),
        (lambda m: m.pop(), "lacks assets.extra/report/card.md, which its manifest lists"),
        (lambda m: m.reverse(), "its first file is score/2/assets.extra/report/card.md, not a manifest"),
        (lambda m: m.clear(), "is empty"),
    ],
)
def test_what_no_version_holds_is_refused(
    store: ModelStore,
    other: ModelStore,
    tmp_path: Path,
    change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None],
    message: str,
) -> None:
    members = members_of(store)
    change(members)
    with pytest.raises(StoreError) as caught:
        archive.unpack(other, write(tmp_path / "evil.tar.gz", members))
    assert message in str(caught.value)
    assert not other.root.exists()
    assert not (tmp_path / "evil").exists()


def members_of(store: ModelStore) -> list[tuple[tarfile.TarInfo, bytes]]:
    names = ("assets.extra/manifest.json", GRAPH, "assets.extra/report/card.md")
    return [member(f"score/2/{name}", (store.path("score", 2) / name).read_bytes()) for name in names]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 9}, "has the schema 9; this bookserve reads 1 to 2: update it"),
        ({"files": {"../evil": "0" * 64}}, "'../evil' is no path inside a version"),
        ({"files": {GRAPH: "0" * 64}}, "is not the file that the manifest lists"),
        ({"model": "../../evil"}, "is not below ../../evil/2/"),
        ({"version": -2}, "is of version -2, which is no version"),
        ({"created": 7}, "the field 'created' is 7"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    store: ModelStore, other: ModelStore, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    members = members_of(store)
    text = json.dumps({**json.loads(members[0][1]), **fields}).encode()
    members[0] = member(members[0][0].name, text)
    with pytest.raises(StoreError) as caught:
        archive.unpack(other, write(tmp_path / "evil.tar.gz", members))
    assert message in str(caught.value)
    assert not other.root.exists()


@pytest.mark.parametrize("field", ["model", "version"])
def test_a_name_or_number_that_is_none_is_refused_also_where_the_archive_agrees(
    store: ModelStore, other: ModelStore, tmp_path: Path, field: str
) -> None:
    value: object = {"model": "..", "version": -2}[field]
    content = {**json.loads(members_of(store)[0][1]), field: value}
    prefix = f"{content['model']}/{content['version']}/"
    members = [member(info.name.replace("score/2/", prefix), data) for info, data in members_of(store)]
    members[0] = member(f"{prefix}assets.extra/manifest.json", json.dumps(content).encode())
    with pytest.raises(StoreError, match=r"cannot be the name of a model|is no version"):
        archive.unpack(other, write(tmp_path / "evil.tar.gz", members))
    assert not other.root.exists()


def test_bombs_are_refused_before_anything_is_written(store: ModelStore, other: ModelStore, tmp_path: Path) -> None:
    archive.pack(store, "score", 2, tmp_path / "score.tar.gz")
    with pytest.raises(StoreError, match="holds more than 1000 bytes: --max-bytes allows more"):
        archive.unpack(other, tmp_path / "score.tar.gz", max_bytes=1000)
    bomb = member(f"score/2/{GRAPH}")[0]
    bomb.size = 1 << 32
    head = members_of(store)[0]
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb") as file:
        file.write(head[0].tobuf(tarfile.USTAR_FORMAT) + head[1] + b"\0" * (-len(head[1]) % 512))
        file.write(bomb.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(20):
            file.write(b"\0" * (1 << 20))
    with pytest.raises(StoreError, match="holds more than 1073741824 bytes"):
        archive.unpack(other, path, max_bytes=1 << 30)
    with pytest.raises(StoreError, match="is damaged, or no archive of a version"):
        archive.unpack(other, path)
    path.write_bytes((tmp_path / "score.tar.gz").read_bytes() + gzip.compress(b"\0" * (1 << 20)))
    with pytest.raises(StoreError, match="has more in it after its end"):
        archive.unpack(other, path)
    assert not other.root.exists()


def test_every_shorter_or_damaged_file_is_one_line(store: ModelStore, other: ModelStore, tmp_path: Path) -> None:
    archive.pack(store, "score", 2, tmp_path / "score.tar.gz")
    whole = (tmp_path / "score.tar.gz").read_bytes()
    bad = [whole[: len(whole) * part // 16] for part in range(16)]
    bad += [bytes([*whole[:at], whole[at] ^ 0x55, *whole[at + 1 :]]) for at in range(0, len(whole), 11)]
    harmless = 0
    for number, data in enumerate(bad):
        (tmp_path / "bad").write_bytes(data)
        try:
            archive.unpack(other, tmp_path / "bad")
        except StoreError:
            assert not other.root.exists(), number
        else:  # a bit that says nothing, such as gzip's byte for the operating system
            assert content(other.path("score", 2)) == content(store.path("score", 2))
            shutil.rmtree(other.root)
            harmless += 1
    assert harmless < 4


def test_a_listed_file_that_was_changed_is_not_packed_even_where_one_may_be_put_by_hand(
    store: ModelStore, tmp_path: Path
) -> None:
    folder = store.path("score", 1)
    (folder / "assets.extra/tf_serving_warmup_requests").write_bytes(b"as published")
    described = replace(store.manifest("score", 1), files=manifests.digests(folder))
    (folder / manifests.LOCATION).write_text(described.to_json())
    archive.pack(store, "score", 1, tmp_path / "a.tar.gz")
    (folder / "assets.extra/tf_serving_warmup_requests").write_bytes(b"another")
    with pytest.raises(StoreError, match=r"is not as published \(assets\.extra/tf_serving_warmup_requests\)"):
        archive.pack(store, "score", 1, tmp_path / "a.tar.gz")


def test_what_cannot_be_packed_is_named(store: ModelStore, tmp_path: Path, invoke: Invoke) -> None:
    (store.path("score", 1) / "extra.bin").write_bytes(b"1")
    (store.path("score", 2) / manifests.LOCATION).unlink()
    for arguments, message in (
        (["score", "1", tmp_path / "a.tar"], "is not as published (extra.bin)"),
        (["score", "2", tmp_path / "a.tar"], "has no manifest"),
        (["score", "9", tmp_path / "a.tar"], "(versions: 1, 2)"),
    ):
        result = invoke("models", "pack", *arguments, "--models-dir", store.root)
        assert result.exit_code == 1
        assert message in result.output
    assert not (tmp_path / "a.tar").exists()
    (store.path("score", 1) / "extra.bin").unlink()
    result = invoke("models", "pack", "score", "1", tmp_path / "none/a.tar", "--models-dir", store.root)
    assert "none/a.tar cannot be written: No such file or directory" in result.output
