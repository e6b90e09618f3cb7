"""How many requests are in flight at each address, which address takes the next, and whether any still lives.

The width of an address starts small and grows while latency holds; after the first trouble it grows by one a round and
is halved by trouble, at most once a round. A request that is tried again goes before those that wait for their first try.
"""

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress

from demur.errors import disarmed, scrubbed

START = 64  # Requests in flight at the start
STRETCH = 4.0  # How many times its best latency an address may show and still grow
RESTS = (0.2, 30.0)  # Shortest and longest rest of an address that only fails, in seconds
HOPELESS = 8  # So many requests that fail, and none that succeeds: the server is down
REPORT = 30.0  # Seconds between two lines about a server that does not answer

log = logging.getLogger("demur")


class Address:
    """One URL."""

    def __init__(self, url: str, *, most: int) -> None:
        self.url = url
        self.width = float(min(START, most))
        self.in_flight = 0
        self.closed_until = 0.0
        self.failures = 0  # Rounds of failures since the last success
        self._most = most
        self._steady, self._round_ends = False, 0.0
        self._latency: float | None = None
        self._best: float | None = None

    def room(self, now: float) -> bool:
        """Whether a request may go here now."""
        return now >= self.closed_until and self.in_flight < (1 if self.failures >= 3 else int(self.width))

    def succeeded(self, seconds: float) -> None:
        """A reply came after so many seconds."""
        self.failures = 0
        self._latency = seconds if self._latency is None else 0.95 * self._latency + 0.05 * seconds
        self._best = self._latency if self._best is None else min(self._best, self._latency)
        full = self.in_flight + 1 >= int(self.width)
        if full and self._latency <= STRETCH * self._best:
            self.width = min(self._most, self.width + (1 / self.width if self._steady else 1))

    def troubled(self, *, down: bool = False, rest: float | None = None) -> None:
        """The server was overloaded, or slow, or (`down`) failed altogether; `rest`: the seconds that it asked for.

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


class Limiter:
    """The addresses of a model, and the requests that wait for one."""

    def __init__(self, urls: list[str], *, most: int) -> None:
        self.addresses = [Address(url, most=most) for url in urls]
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, *, again: bool = False, avoid: Address | None = None) -> Address:
        """An address with room, the least loaded one; after a failure another than `avoid` where there is one."""
        while True:
            now = time.monotonic()
            open_ones = [one for one in self.addresses if one.room(now)]
            others = [one for one in open_ones if one is not avoid] or open_ones
            if others:
                found = min(others, key=lambda one: (one.failures, one.in_flight / one.width))
                found.in_flight += 1
                return found
            # Until an address has room again, or a closed one opens.
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.insert(0 if again else len(self._waiting), future)
            closed = [one.closed_until - now for one in self.addresses if one.closed_until > now]
            with suppress(TimeoutError):
                await asyncio.wait_for(future, min(closed) + 0.001 if closed else None)

    def leave(self, address: Address) -> None:
        """Give the place back, and let those in who now fit."""
        address.in_flight -= 1
        room = sum(max(1, int(one.width) - one.in_flight) for one in self.addresses)
        while room > 0 and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1


class Health:
    """Whether a server lives, from what succeeded and failed; says so while it does not."""

    def __init__(self, where: str, *, patience: float) -> None:
        self.replies = 0
        self._where = where
        self._patience = patience
        self._last_success = self._since = self._next_line = 0.0
        self._failing: set[bytes] = set()

    def succeeded(self) -> None:
        """A reply came."""
        self.replies += 1
        self._last_success = time.monotonic()
        if self._failing:
            self._failing.clear()
            self._since = 0.0

    def failed(self, key: bytes, why: str, tries: str = "") -> None:
        """A try of a request failed; `tries` says how often it is made, where that has an end."""
        now = time.monotonic()
        self._failing.add(key)
        if not self._since:
            self._since, self._next_line = now, now + REPORT / 3
        self._report(now, f"{why}. Trying again, {tries}for {max(self._since + self._patience - now, 0):.0f} s at most")

    def waits(self, seconds: float, why: str) -> None:
        """The server asks to wait."""
        if seconds >= REPORT / 3:
            self._report(time.monotonic(), f"waiting {seconds:.0f} s, as the server asks ({why})")

    def _report(self, now: float, text: str) -> None:
        if now >= self._next_line:
            self._next_line = now + REPORT
            log.warning("%s: %s", self._where, disarmed(scrubbed(text)))

    def dead(self, since: float, *, unreached: bool, known: bool) -> bool:
        """Whether a request that failed since a time shows a server that is down, and not a request that cannot be answered.

        `since` is when its first try began, `unreached` whether no connection could be made, `known` whether it has ever answered.
        """
        return self._last_success < since and (unreached or not known or len(self._failing) >= HOPELESS)
