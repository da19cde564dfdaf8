from collections.abc import Iterator

import pytest

from bucket_servers import S3Server, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """One that the clients in this process ask."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3
