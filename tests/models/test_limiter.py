"""How wide a lane is, and which one a request takes."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.models.limiter import Lane, Lanes


def test_a_lane_widens_while_latency_holds_and_stops_when_it_does_not() -> None:
    lane = Lane("a", most=500)
    for _ in range(300):
        lane.in_flight = int(lane.width)
        lane.succeeded(0.1)
    assert lane.width == 364
    wide = lane.width
    for _ in range(300):
        lane.in_flight = int(lane.width)
        lane.succeeded(2.0)
    assert wide <= lane.width < wide + 60


def test_trouble_halves_once_a_round_and_then_growth_is_slow() -> None:
    lane = Lane("a", most=100)
    lane.succeeded(0.05)
    before = lane.width
    for _ in range(20):
        lane.troubled()
    assert lane.width == before / 2
    for _ in range(10):
        lane.in_flight = int(lane.width)
        lane.succeeded(0.05)
    assert before / 2 < lane.width < before / 2 + 1


def test_retry_after_closes_a_lane_for_so_long() -> None:
    lane = Lane("a", most=10)
    lane.troubled(rest=0.2)
    now = time.monotonic()
    assert not lane.room(now)
    assert lane.room(now + 0.21)
    assert lane.failures == 0


def test_a_lane_that_is_down_is_tried_with_one_request_now_and_then() -> None:
    lanes = Lanes(("a/", "b"), most=10)
    bad, good = lanes.lanes
    for _ in range(4):
        bad.troubled(down=True)
        bad._round_ends = 0.0

    async def main() -> list[str]:
        return [(await lanes.enter()).url for _ in range(10)]

    assert asyncio.run(main()) == ["b"] * 10
    assert (bad.url, good.in_flight) == ("a", 10)
    later = bad.closed_until + 0.01
    assert bad.room(later)
    bad.in_flight = 1
    assert not bad.room(later)


def test_those_who_wait_go_in_when_somebody_leaves_or_a_lane_opens() -> None:
    async def main() -> list[int]:
        lanes = Lanes(("a",), most=2)
        order: list[int] = []

        async def visit(number: int) -> None:
            lane = await lanes.enter()
            order.append(number)
            await asyncio.sleep(0.005)
            lanes.leave(lane)

        await asyncio.wait_for(asyncio.gather(*(visit(i) for i in range(20))), 5)
        lanes.lanes[0].troubled(rest=0.05)
        begun = time.monotonic()
        await asyncio.wait_for(visit(20), 5)
        assert time.monotonic() - begun >= 0.04
        return order

    assert sorted(asyncio.run(main())) == list(range(21))


def test_a_cancelled_waiter_takes_no_place() -> None:
    async def main() -> None:
        lanes = Lanes(("a",), most=1)
        lane = await lanes.enter()
        first, second = asyncio.create_task(lanes.enter()), asyncio.create_task(lanes.enter())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        lanes.leave(lane)
        assert await asyncio.wait_for(second, 1) is lane
        assert lane.in_flight == 1

    asyncio.run(main())


@given(st.lists(st.sampled_from(["good", "slow", "bad", "down", "rest"]), max_size=60), st.integers(1, 300))
def test_the_width_stays_within_its_bounds(events: list[str], most: int) -> None:
    lane = Lane("a", most=most)
    for event in events:
        lane.in_flight = int(lane.width)
        if event in ("good", "slow"):
            lane.succeeded(0.01 if event == "good" else 5.0)
        else:
            lane.troubled(down=event == "down", rest=1.0 if event == "rest" else None)
        assert 1 <= lane.width <= most


def test_after_a_failure_another_lane_is_preferred() -> None:
    async def main() -> None:
        lanes = Lanes(("a", "b"), most=4)
        first = await lanes.enter()
        second = await lanes.enter(avoid=first)
        assert second is not first

    asyncio.run(main())
    with pytest.raises(ValueError, match="empty"):
        Lanes((), most=1).last_success()
