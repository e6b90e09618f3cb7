"""A concurrency limiter for a model's addresses, and the decision that a server is down.

Each address has its own limit on requests in flight. It starts small and grows by one per reply while latency holds.
The first failure halves it; from then on it grows by one per round of requests and is halved at most once per round.
Retries take precedence over first tries.
"""

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress

from demur.errors import disarmed, scrubbed

START = 64  # The limit at the start
STRETCH = 4.0  # The limit grows while the average latency is at most this multiple of the best
PAUSES = (0.2, 30.0)  # Shortest and longest pause of an address that only fails, in seconds
HOPELESS = 8  # So many failing requests, and none that succeeds: the server is down
REPORT = 30.0  # Seconds between two lines about a server that does not answer

log = logging.getLogger("demur")


class Address:
    """One URL and its limit on requests in flight, `width`."""

    def __init__(self, url: str, *, most: int) -> None:
        self.url = url
        self.width = float(min(START, most))
        self.in_flight = 0
        self.closed_until = 0.0
        self.failures = 0  # Rounds of failures since the last success
        self._most = most
        self._steady, self._round_ends = False, 0.0  # `_steady`: it has failed once, and grows slowly from then on
        self._latency: float | None = None  # An exponential average, in seconds
        self._best: float | None = None

    def has_room(self, now: float) -> bool:
        """Whether a request may be sent here now; after three failed rounds, one at a time."""
        return now >= self.closed_until and self.in_flight < (1 if self.failures >= 3 else int(self.width))

    def succeeded(self, seconds: float) -> None:
        """Record a reply that took so many seconds."""
        self.failures = 0
        self._latency = seconds if self._latency is None else 0.95 * self._latency + 0.05 * seconds
        self._best = self._latency if self._best is None else min(self._best, self._latency)
        full = self.in_flight + 1 >= int(self.width)
        if full and self._latency <= STRETCH * self._best:
            self.width = min(self._most, self.width + (1 / self.width if self._steady else 1))

    def failed(self, *, down: bool = False, wait: float | None = None) -> None:
        """Record a failure: the server is overloaded, slow or (`down`) broken, and may ask for a `wait` in seconds."""
        now = time.monotonic()
        self._steady = True
        # Requests that were in flight together fail together: a round counts as one failure.
        if now >= self._round_ends:
            self.width = max(1.0, self.width / 2)
            self.failures += down
            if down and self.failures >= 3:
                wait = max(wait or 0.0, min(PAUSES[1], PAUSES[0] * 2.0 ** min(self.failures - 3, 10)))
            self._round_ends = now + max(self._latency or 0.1, wait or 0.0)
        if wait is not None:
            self.closed_until = max(self.closed_until, now + wait)


class Limiter:
    """The addresses of a model, and the requests that wait for room at one."""

    def __init__(self, urls: list[str], *, most: int) -> None:
        self.addresses = [Address(url, most=most) for url in urls]
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, *, again: bool = False, avoid: Address | None = None) -> Address:
        """Wait for a place at the least loaded address. A retry (`again`) goes first, not to `avoid` if possible."""
        while True:
            now = time.monotonic()
            with_room = [address for address in self.addresses if address.has_room(now)]
            candidates = [address for address in with_room if address is not avoid] or with_room
            if candidates:
                chosen = min(candidates, key=lambda address: (address.failures, address.in_flight / address.width))
                chosen.in_flight += 1
                return chosen
            # Wait until a request leaves, or a closed address opens.
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.insert(0 if again else len(self._waiting), future)
            closed = [address.closed_until - now for address in self.addresses if address.closed_until > now]
            with suppress(TimeoutError):
                await asyncio.wait_for(future, min(closed) + 0.001 if closed else None)

    def leave(self, address: Address) -> None:
        """Give the place back, and wake as many waiting requests as may have room."""
        address.in_flight -= 1
        room = sum(max(1, int(other.width) - other.in_flight) for other in self.addresses)
        while room > 0 and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1


class Health:
    """Whether a server is down, from the requests that succeeded and failed; logs a line while it does not answer."""

    def __init__(self, where: str, *, patience: float) -> None:
        self.replies = 0
        self._where, self._patience = where, patience
        self._last_success = self._since = self._next_line = 0.0
        self._failing: set[bytes] = set()

    def succeeded(self) -> None:
        """Record a reply."""
        self.replies += 1
        self._last_success = time.monotonic()
        if self._failing:
            self._failing.clear()
            self._since = 0.0

    def failed(self, key: bytes, reason: str, tries: str = "") -> None:
        """Record a failed try; `tries` is the log's phrase for the limit on tries, empty if only time limits them."""
        now = time.monotonic()
        self._failing.add(key)
        if not self._since:
            self._since, self._next_line = now, now + REPORT / 3
        left = max(self._since + self._patience - now, 0)
        self._report(now, f"{reason}. Trying again, {tries}for {left:.0f} s at most")

    def waits(self, seconds: float, reason: str) -> None:
        """Record that the server asks to wait."""
        if seconds >= REPORT / 3:
            self._report(time.monotonic(), f"waiting {seconds:.0f} s, as the server asks ({reason})")

    def _report(self, now: float, text: str) -> None:
        if now >= self._next_line:
            self._next_line = now + REPORT
            log.warning("%s: %s", self._where, disarmed(scrubbed(text)))

    def is_down(self, since: float, *, unreached: bool, known: bool) -> bool:
        """Whether a request that has failed since `since` shows that the server is down, not that it is unanswerable.

        `unreached`: no connection could be made. `known`: the server has answered at some time.
        """
        return self._last_success < since and (unreached or not known or len(self._failing) >= HOPELESS)
