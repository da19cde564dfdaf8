import socket
import sys

import pytest

from bookserve.serving.wire import listening


@pytest.mark.skipif(sys.platform != "linux", reason="packet filters are Linux's")
def test_at_a_stop_only_what_asks_for_a_connection_is_dropped() -> None:
    """The filter reads TCP's flags, the 14th byte of a packet; a datagram has 8 bytes of header before its content."""
    syn, ack, push, fin, reset = 0x02, 0x10, 0x08, 0x01, 0x04
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as filtered,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        filtered.bind(("127.0.0.1", 0))
        filtered.settimeout(20)
        listening.drop_new_handshakes(filtered)
        for flags in (syn, ack, syn, push | ack, fin | ack, reset):
            sender.sendto(bytes(5) + bytes([flags]) + bytes(6), filtered.getsockname())
        assert [filtered.recv(64)[5] for _ in range(4)] == [ack, push | ack, fin | ack, reset]


@pytest.mark.skipif(sys.platform != "linux", reason="only there one socket takes over from another")
@pytest.mark.parametrize("dual", [True, False])
def test_a_successor_of_ipv6_takes_ipv4_where_the_one_before_did(dual: bool) -> None:
    try:
        first = listening.bound(socket.AF_INET6, socket.SOCK_STREAM, 0, ("::", 0), shared=True, dual=dual)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with first:
        first.listen()
        second = listening.successor(first)
        assert second is not None
        with second:
            for endpoint in (first, second):
                assert endpoint.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == int(not dual)
            if dual:
                socket.create_connection(("127.0.0.1", second.getsockname()[1]), timeout=10).close()
                second.settimeout(10)
                second.accept()[0].close()
