"""How wide an address is, and which one a request takes."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.models.limiter import Address, Health, Limiter


def test_an_address_widens_while_latency_holds_and_stops_when_it_does_not() -> None:
    address = Address("a", most=500)
    for _ in range(300):
        address.in_flight = int(address.width)
        address.succeeded(0.1)
    assert address.width == 364
    wide = address.width
    for _ in range(300):
        address.in_flight = int(address.width)
        address.succeeded(2.0)
    assert wide <= address.width < wide + 60


def test_trouble_halves_once_a_round_and_then_growth_is_slow() -> None:
    address = Address("a", most=100)
    address.succeeded(0.05)
    before = address.width
    for _ in range(20):
        address.failed()
    assert address.width == before / 2
    for _ in range(10):
        address.in_flight = int(address.width)
        address.succeeded(0.05)
    assert before / 2 < address.width < before / 2 + 1


def test_retry_after_closes_an_address_for_so_long() -> None:
    address = Address("a", most=10)
    address.failed(wait=0.2)
    now = time.monotonic()
    assert not address.has_room(now)
    assert address.has_room(now + 0.21)
    assert address.failures == 0


def test_an_address_that_is_down_is_tried_with_one_request_now_and_then() -> None:
    limiter = Limiter(["a", "b"], most=10)
    bad, good = limiter.addresses
    for _ in range(4):
        bad.failed(down=True)
        bad._round_ends = 0.0

    async def main() -> list[str]:
        return [(await limiter.enter()).url for _ in range(10)]

    assert asyncio.run(main()) == ["b"] * 10
    assert (bad.url, good.in_flight) == ("a", 10)
    later = bad.closed_until + 0.01
    assert bad.has_room(later)
    bad.in_flight = 1
    assert not bad.has_room(later)


def test_those_who_wait_go_in_when_somebody_leaves_or_an_address_opens() -> None:
    async def main() -> list[int]:
        limiter = Limiter(["a"], most=2)
        order: list[int] = []

        async def visit(number: int) -> None:
            address = await limiter.enter()
            order.append(number)
            await asyncio.sleep(0.005)
            limiter.leave(address)

        await asyncio.wait_for(asyncio.gather(*(visit(i) for i in range(20))), 5)
        limiter.addresses[0].failed(wait=0.05)
        begun = time.monotonic()
        await asyncio.wait_for(visit(20), 5)
        assert time.monotonic() - begun >= 0.04
        return order

    assert sorted(asyncio.run(main())) == list(range(21))


def test_a_cancelled_waiter_takes_no_place() -> None:
    async def main() -> None:
        limiter = Limiter(["a"], most=1)
        address = await limiter.enter()
        first, second = asyncio.create_task(limiter.enter()), asyncio.create_task(limiter.enter())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        limiter.leave(address)
        assert await asyncio.wait_for(second, 1) is address
        assert address.in_flight == 1

    asyncio.run(main())


@given(st.lists(st.sampled_from(["good", "slow", "bad", "down", "wait"]), max_size=60), st.integers(1, 300))
def test_the_width_stays_within_its_bounds(events: list[str], most: int) -> None:
    address = Address("a", most=most)
    for event in events:
        address.in_flight = int(address.width)
        if event in ("good", "slow"):
            address.succeeded(0.01 if event == "good" else 5.0)
        else:
            address.failed(down=event == "down", wait=1.0 if event == "wait" else None)
        assert 1 <= address.width <= most


def test_after_a_failure_another_address_is_preferred() -> None:
    async def main() -> None:
        limiter = Limiter(["a", "b"], most=4)
        first = await limiter.enter()
        second = await limiter.enter(avoid=first)
        assert second is not first

    asyncio.run(main())


def test_a_request_that_is_tried_again_goes_before_those_that_wait_for_their_first_try() -> None:
    async def main() -> list[str]:
        limiter = Limiter(["a"], most=1)
        first = await limiter.enter()
        order: list[str] = []

        async def visit(name: str, *, again: bool) -> None:
            address = await limiter.enter(again=again)
            order.append(name)
            limiter.leave(address)

        tasks = [asyncio.create_task(visit("new", again=False)), asyncio.create_task(visit("again", again=True))]
        await asyncio.sleep(0)
        limiter.leave(first)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(main()) == ["again", "new"]


def test_one_request_that_cannot_be_answered_is_not_a_server_that_is_down() -> None:
    health = Health("here", patience=9)
    begun = time.monotonic()
    health.failed(b"one", "HTTP 500")
    assert not health.is_down(begun, unreached=False, known=True)
    assert health.is_down(begun, unreached=True, known=True), "no connection at all"
    assert health.is_down(begun, unreached=False, known=False), "it has never answered anything"
    for i in range(8):
        health.failed(bytes([i]), "HTTP 500")
    assert health.is_down(begun, unreached=False, known=True), "whatever is asked fails"
    health.succeeded()
    assert not health.is_down(begun, unreached=True, known=True)


def test_a_server_that_does_not_answer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    health = Health("here", patience=900)
    health.failed(b"one", "HTTP 500")
    assert not caplog.records
    health._next_line = 0.0
    health.failed(b"one", "HTTP 500: \x1b[31mred")
    health.waits(60, "HTTP 429")
    assert [record.getMessage() for record in caplog.records] == [
        "here: HTTP 500: \ufffd[31mred. Trying again, for 900 s at most"
    ]
