"""The rate limiter keeps to its rate, and to its memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.middleware.rate_limiter import RateLimiter, network_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_then_one_for_every_interval() -> None:
    clock = Clock()
    limiter = RateLimiter(10.0, 3, 10, clock)
    assert [limiter.wait("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limiter.wait("a") == pytest.approx(0.1)
    clock.now += 0.05
    assert limiter.wait("a") == pytest.approx(0.05)
    assert limiter.wait("b") == 0.0
    clock.now += 0.05
    assert limiter.wait("a") == 0.0
    assert limiter.wait("a") > 0.0
    clock.now += 100.0
    assert [limiter.wait("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_whoever_waits_as_told_passes() -> None:
    clock = Clock()
    limiter = RateLimiter(3.0, 1, 10, clock)
    for _ in range(100):
        clock.now += limiter.wait("a")
        clock.now += limiter.wait("a")
    passed = clock.now - 100.0
    assert passed == pytest.approx(100 / 3, rel=0.02)


@given(
    st.lists(st.floats(0, 0.5), min_size=1, max_size=60),
    st.floats(1, 50),
    st.integers(1, 8),
)
def test_never_more_pass_than_burst_and_rate_allow(
    gaps: list[float], rate: float, burst: int
) -> None:
    clock = Clock()
    limiter = RateLimiter(rate, burst, 10, clock)
    passed: list[float] = []
    for gap in gaps:
        clock.now += gap
        if limiter.wait("a") == 0.0:
            passed.append(clock.now)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            most = burst + rate * (passed[last] - start) + 1e-6
            assert last - first + 1 <= most


def test_many_clients_take_bounded_memory_and_the_longest_silent_is_forgotten() -> None:
    clock = Clock()
    limiter = RateLimiter(0.001, 1, 100, clock)
    for number in range(10_000):
        assert limiter.wait(f"client {number}") == 0.0
        if number >= 100:
            assert limiter.wait("client 0" if number == 0 else f"client {number}") > 0.0
    assert len(limiter) == 100
    assert limiter.wait("client 9999") > 0.0
    assert limiter.wait("client 0") == 0.0


def test_a_client_cannot_change_its_key_within_its_network() -> None:
    assert network_of("203.0.113.5") == "203.0.113.5"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") == "2001:db8::/64"
    assert network_of("no:address") == "no:address"
    assert network_of("") == ""
