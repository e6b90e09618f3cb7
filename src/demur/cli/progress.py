"""How a running study looks: one line for each group of stages on a terminal, plain lines elsewhere.

Stages are grouped by the first word of their name (`train-improved-s0` belongs to train), in the order of the graph.
Without a terminal every stage says when it starts and ends, and once a minute what is running says how far it is.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demur.cli import SHOWN
from demur.pipeline.run import Event
from demur.storage.artifacts import atomic_write

RUNNING = "running.json"  # How far the stages are that run, and why one failed, for `demur status`
NOTED = 5.0  # Seconds between two notes of it
EVERY = 60.0  # Seconds between two plain lines about running stages
STEADY = 10.0  # Seconds of work from which the time that is left is estimated
ENDED, RUNS = ("done", "reused"), ("started", "progress")
FAILED = "failed: "  # How a note of a stage that failed begins


class Display:
    """Shows events of `execute`; use it as a context manager around the run."""

    def __init__(self, console: Console, names: Iterable[str], *, title: str = "", out: Path | None = None) -> None:
        self.console, self.title, self._out, self._noted = console, title, out, 0.0
        self.states: dict[str, Event] = {name: Event(name, "waiting") for name in names}
        self._began: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # When a stage first had something done, and how much of it
        self._over, self._lock = threading.Event(), threading.Lock()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Self:
        SHOWN.set()
        if self.title:
            self.console.print(self.title)
        if self.console.is_terminal:
            self._live.start()
        else:
            threading.Thread(target=self._minutely, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._live.stop()
        self._note()
        if reused := self._in("reused"):
            self.console.print(f"  {len(reused)} of {len(self.states)} stages were there already and were reused")

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            if event.state == "progress" and self.states[event.name].state in ("done", "failed"):
                return
            self.states[event.name] = event
            self._began.setdefault(event.name, time.monotonic())
            if event.done:
                self._first.setdefault(event.name, (time.monotonic(), event.done))
            if time.monotonic() - self._noted >= NOTED:
                self._note()
        if not self.console.is_terminal:
            self._print(event)

    def _note(self) -> None:
        """Write down how far the stages are that run, and why one failed; that is no result, so a full disk is no matter."""
        if self._out is not None:
            self._noted, path = time.monotonic(), self._out / RUNNING
            far = {one.name: self._far(one) for one in self._in(*RUNS, "failed")}
            with contextlib.suppress(OSError):
                atomic_write(path, json.dumps(far, ensure_ascii=False)) if far else path.unlink(missing_ok=True)

    def _in(self, *states: str) -> list[Event]:
        """The stages that are in one of these states."""
        return [event for event in self.states.values() if event.state in states]

    def _print(self, event: Event) -> None:
        """Plain lines: starts and ends."""
        if event.state in ("started", "failed"):
            self.console.print(f"  {event.name}: {event.state}")
        elif event.state == "progress" and not event.done and event.remark:
            self.console.print(f"  {event.name}: {event.remark}")
        elif event.state == "done":
            ended = f"[{len(self._in(*ENDED))}/{len(self.states)}]"
            self.console.print(f"  {event.name}: done  {event.seconds:.1f} s  {event.remark}  {ended}")

    def _minutely(self) -> None:
        """Once a minute a plain line for each stage that runs, whether or not it has anything to report."""
        while not self._over.wait(EVERY):
            for one in self._in(*RUNS):
                self.console.print(f"  {one.name}: {self._far(one)}")

    def _far(self, event: Event) -> str:
        """How far a running stage is: `120/400  0:03:10 left  loss 0.21`."""
        now = time.monotonic()
        if event.state == "failed":
            return FAILED + event.remark
        if not event.done:
            began = self._began.get(event.name, now)
            return f"began {timedelta(seconds=round(now - began))} ago  {event.remark}".rstrip()
        words = [f"{event.done:,}/{event.total:,}" if event.total else f"{event.done:,}"]
        since, first = self._first.get(event.name, (now, event.done))
        if event.total and event.done > first and now - since >= STEADY:
            left = (now - since) * (event.total - event.done) / (event.done - first)
            words.append(f"{timedelta(seconds=round(left))} left")
        return "  ".join([*words, event.remark])

    def _render(self) -> Group:
        """The table of groups as it stands."""
        with self._lock:
            events = list(self.states.values())
        grid = Table.grid(padding=(0, 1))
        for name in dict.fromkeys(event.name.partition("-")[0] for event in events):
            grid.add_row(f"  {name:<10}", *self._row([one for one in events if one.name.partition("-")[0] == name]))
        over = all(event.state in ENDED for event in events)
        return Group(grid, Text("" if over else "  Ctrl-C is safe: run the same command to go on.", style="dim"))

    def _row(self, members: list[Event]) -> tuple[Text | ProgressBar, Text, Text]:
        """Bar, count and remark of one group."""
        ended = [event for event in members if event.state in ENDED]
        running = [event for event in members if event.state in RUNS]
        count = Text(f"{len(ended)}/{len(members)}")
        if failed := [event.name for event in members if event.state == "failed"]:
            return Text("✗ failed", style="red"), count, Text(", ".join(failed))
        if len(ended) == len(members):
            seconds = sum(event.seconds for event in ended)
            remark = ended[-1].remark if len(members) == 1 else ""
            return Text("✓", style="green"), count, Text(f"{remark}  {seconds:.1f} s" if seconds else "reused")
        part = sum(event.done / event.total for event in running if event.total)
        remark = f"{running[-1].name.partition('-')[2]}  {self._far(running[-1])}" if running else ""
        bar = ProgressBar(total=len(members), completed=len(ended) + part, width=30)
        return bar, count, Text(remark, overflow="ellipsis", no_wrap=True)
