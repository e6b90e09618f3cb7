"""Progress of a running study: a live table with one line for each group of stages on a terminal, plain lines elsewhere.

Stages are grouped by the first word of their names (`train-improved-s0` belongs to `train`), in the order of the graph.
The plain lines report the start and the end of each stage and, once a minute, how far each running stage is.
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

RUNNING = "running.json"  # For `demur status`: how far each running stage is, and why a stage failed
SAVED = 5.0  # Seconds between two updates of that file
EVERY = 60.0  # Seconds between two plain lines about a running stage
STEADY = 10.0  # Seconds of work before the remaining time is estimated
ENDED, RUNS = ("done", "reused"), ("started", "progress")
FAILED = "failed: "  # Prefix in that file for a stage that failed


class Display:
    """Shows the events of `execute`. A context manager, entered for the time of the run."""

    def __init__(self, console: Console, names: Iterable[str], *, title: str = "", out: Path | None = None) -> None:
        self.console, self.title, self._out, self._saved = console, title, out, 0.0
        self.states: dict[str, Event] = {name: Event(name, "waiting") for name in names}
        self._began: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # Time and count of a stage's first event with something done
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
        self._save()
        if reused := self._in("reused"):
            self.console.print(f"  {len(reused)} of {len(self.states)} stages were done already and were reused")

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        with self._lock:
            if event.state == "progress" and self.states[event.name].state in ("done", "failed"):
                return
            self.states[event.name] = event
            self._began.setdefault(event.name, time.monotonic())
            if event.done:
                self._first.setdefault(event.name, (time.monotonic(), event.done))
            if time.monotonic() - self._saved >= SAVED:
                self._save()
        if not self.console.is_terminal:
            self._print(event)

    def _save(self) -> None:
        """Write `running.json`. It is not a result, so a full disk does not matter."""
        if self._out is not None:
            self._saved, path = time.monotonic(), self._out / RUNNING
            far = {event.name: self._far(event) for event in self._in(*RUNS, "failed")}
            with contextlib.suppress(OSError):
                atomic_write(path, json.dumps(far, ensure_ascii=False)) if far else path.unlink(missing_ok=True)

    def _in(self, *states: str) -> list[Event]:
        """The stages that are in one of these states."""
        return [event for event in self.states.values() if event.state in states]

    def _print(self, event: Event) -> None:
        """Print plain lines for starts, ends and remarks."""
        if event.state in ("started", "failed"):
            self.console.print(f"  {event.name}: {event.state}")
        elif event.state == "progress" and not event.done and event.remark:
            self.console.print(f"  {event.name}: {event.remark}")
        elif event.state == "done":
            ended = f"[{len(self._in(*ENDED))}/{len(self.states)}]"
            self.console.print(f"  {event.name}: done  {event.seconds:.1f} s  {event.remark}  {ended}")

    def _minutely(self) -> None:
        """Once a minute, print a plain line for each running stage, even without news."""
        while not self._over.wait(EVERY):
            for event in self._in(*RUNS):
                self.console.print(f"  {event.name}: {self._far(event)}")

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
        """The current table of groups."""
        with self._lock:
            events = list(self.states.values())
        grid = Table.grid(padding=(0, 1))
        for name in dict.fromkeys(event.name.partition("-")[0] for event in events):
            members = [event for event in events if event.name.partition("-")[0] == name]
            grid.add_row(f"  {name:<10}", *self._row(members))
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
