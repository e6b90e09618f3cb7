"""Where requests go: one lane for each URL, as wide as its server bears.

A lane's width starts small and doubles while latency holds, as long as nothing goes wrong; after the first trouble it
grows by one a round and is halved by trouble, at most once a round. `Retry-After` closes a lane until then. A request takes the lane with the
smallest load; a lane that only fails is left alone and tried with a single request now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

START = 64
"""Requests in flight at the start."""
STRETCH = 4.0
"""How many times its best latency a lane may show and still grow."""
RESTS = (0.2, 30.0)
"""Shortest and longest rest of a lane that only fails, in seconds."""


class Lane:
    """One URL."""

    def __init__(self, url: str, *, most: int) -> None:
        self.url = url
        self.width = float(min(START, most))
        self.in_flight = 0
        self.closed_until = 0.0
        self.failures = 0
        """Rounds of failures since the last success."""
        self.last_success = 0.0
        self._most = most
        self._steady = False
        self._round_ends = 0.0
        self._latency: float | None = None
        self._best: float | None = None

    def room(self, now: float) -> bool:
        """Whether a request may go here now."""
        return now >= self.closed_until and self.in_flight < (1 if self.failures >= 3 else int(self.width))

    def succeeded(self, seconds: float) -> None:
        """A reply came after so many seconds."""
        self.failures = 0
        self.last_success = time.monotonic()
        self._latency = seconds if self._latency is None else 0.95 * self._latency + 0.05 * seconds
        self._best = self._latency if self._best is None else min(self._best, self._latency)
        full = self.in_flight + 1 >= int(self.width)
        if full and self._latency <= STRETCH * self._best:
            self.width = min(self._most, self.width + (1 / self.width if self._steady else 1))

    def troubled(self, *, down: bool = False, rest: float | None = None) -> None:
        """The server was overloaded, or slow, or (`down`) did not answer at all; `rest`: the seconds that it asked for.

        What was in flight together fails together: one round of requests counts as one failure.
        """
        now = time.monotonic()
        self._steady = True
        if now >= self._round_ends:
            self.width = max(1.0, self.width / 2)
            self.failures += down
            if down and self.failures >= 3:
                rest = max(rest or 0.0, min(RESTS[1], RESTS[0] * 2.0 ** min(self.failures - 3, 10)))
            self._round_ends = now + max(self._latency or 0.1, rest or 0.0)
        if rest is not None:
            self.closed_until = max(self.closed_until, now + rest)


class Lanes:
    """The lanes of a role, and those who wait for one."""

    def __init__(self, urls: tuple[str, ...], *, most: int) -> None:
        self.lanes = [Lane(url.rstrip("/"), most=most) for url in urls]
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, *, avoid: Lane | None = None) -> Lane:
        """A lane with room, the least loaded one; after a failure another than `avoid` where there is one."""
        while True:
            now = time.monotonic()
            if len(self.lanes) == 1 and self.lanes[0].room(now):
                self.lanes[0].in_flight += 1
                return self.lanes[0]
            open_ones = [lane for lane in self.lanes if lane.room(now)]
            others = [lane for lane in open_ones if lane is not avoid] or open_ones
            if others:
                lane = min(others, key=lambda lane: (lane.failures, lane.in_flight / lane.width))
                lane.in_flight += 1
                return lane
            await self._wait(now)

    async def _wait(self, now: float) -> None:
        """Until a lane has room again, or a closed one opens."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        closed = [lane.closed_until - now for lane in self.lanes if lane.closed_until > now]
        timer = loop.call_later(min(closed) + 0.001, _wake, future) if closed else None
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()

    def leave(self, lane: Lane) -> None:
        """Give the lane back, and let those in who now fit."""
        lane.in_flight -= 1
        room = sum(max(1, int(one.width) - one.in_flight) for one in self.lanes)
        while room > 0 and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1

    def last_success(self) -> float:
        """When anything last went well, by the monotonic clock."""
        return max(lane.last_success for lane in self.lanes)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
