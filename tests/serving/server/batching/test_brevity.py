"""When the event loop runs batches itself."""

from bookserve.serving.server.batching.brevity import Brevity

SHORT, MIDDLE, LONG = 2e-5, 5e-4, 5e-3


def trusted(nbytes: int = 100) -> Brevity:
    brevity = Brevity(possible=True)
    for _ in range(32):
        brevity.ran(nbytes, SHORT)
    return brevity


def test_a_streak_of_short_runs_is_needed() -> None:
    brevity = Brevity(possible=True)
    for _ in range(31):
        brevity.ran(100, SHORT)
    assert not brevity.covers(100)
    brevity.ran(100, SHORT)
    assert brevity.covers(100)
    interrupted = Brevity(possible=True)
    for number in range(200):
        interrupted.ran(100, MIDDLE if number % 20 == 19 else SHORT)
    assert not interrupted.known


def test_larger_batches_prove_themselves_on_a_thread() -> None:
    brevity = trusted(100)
    assert not brevity.covers(101)
    brevity.ran(200, SHORT)
    assert brevity.covers(200)
    brevity.ran(5000, LONG)  # on a thread, where it holds up nobody
    assert brevity.covers(200)
    assert not brevity.covers(5000)


def test_one_long_run_on_the_loop_ends_it_for_long() -> None:
    brevity = trusted(100)
    brevity.ran(100, MIDDLE)  # a hiccup is forgiven
    assert brevity.covers(100)
    brevity.ran(100, LONG)
    for _ in range(10_000):
        brevity.ran(100, SHORT)
        assert not brevity.known
    for _ in range(32):
        brevity.ran(100, SHORT)
    assert brevity.covers(100)


def test_engines_that_compute_elsewhere_never_get_there() -> None:
    brevity = Brevity(possible=False)
    for _ in range(100):
        brevity.ran(1, SHORT)
    assert not brevity.covers(1)


def test_requests_that_share_a_run_have_longer() -> None:
    brevity = Brevity(possible=True)
    for _ in range(32):
        brevity.ran(6400, MIDDLE, requests=64)
    assert brevity.covers(6400)
    alone = Brevity(possible=True)
    for _ in range(32):
        alone.ran(6400, MIDDLE)
    assert not alone.known
