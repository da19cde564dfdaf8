"""Which Host headers are expected."""

import pytest

from bookserve.serving.wire.hosts import is_expected, listed


@pytest.mark.parametrize(
    ("header", "bound", "expected"),
    [
        *[(host, "10.0.0.5", True) for host in ("localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:80", "[::1]:1")],
        *[(host, "10.0.0.5", True) for host in ("10.0.0.5:8501", "models.example:8501", "Models.Example.")],
        *[(host, "10.0.0.5", False) for host in ("10.0.0.6", "evil.example", "localhost.evil.example", "", "a:b:c")],
        *[(host, "", True) for host in ("192.168.1.7:8501", "[2001:db8::1]:8501", "127.0.0.1")],
        *[(host, "", False) for host in ("evil.example:8501", "192.168.1.7.evil.example", "[evil]", "127.0.0.1@evil")],
        ("server", "server", True),
    ],
)
def test_loopback_the_bound_address_and_what_is_allowed(header: str, bound: str, expected: bool) -> None:
    assert is_expected(header, bound, ["models.example"]) is expected


def test_a_flag_lists_names_or_all() -> None:
    assert listed(" models.example, gateway,,") == ["models.example", "gateway"]
    assert is_expected("evil.example", "10.0.0.5", listed("models.example,*"))
