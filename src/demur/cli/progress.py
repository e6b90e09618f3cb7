"""How a running study looks: one line for each group of stages on a terminal, plain lines elsewhere.

Stages are grouped by the first word of their name (`train-improved-s0` belongs to train), in the order of the graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demur.pipeline.run import Event


class Display:
    """Shows events of `execute`; use it as a context manager around the run."""

    def __init__(self, console: Console, names: Iterable[str], *, title: str = "") -> None:
        self.console = console
        self.title = title
        self.states: dict[str, Event] = {name: Event(name, "waiting") for name in names}
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=False)

    def __enter__(self) -> Display:
        if self.title:
            self.console.print(self.title)
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.refresh()
            self._live.stop()
        reused = sum(event.state == "reused" for event in self.states.values())
        if reused:
            self.console.print(f"  {reused} of {len(self.states)} stages were there already and were reused")

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            old = self.states.get(event.name)
            if event.state == "progress" and old is not None and old.state in ("done", "failed"):
                return
            self.states[event.name] = event
        if not self.console.is_terminal and event.state in ("started", "done", "failed"):
            seconds = f"  {event.seconds:.1f} s" if event.state == "done" else ""
            self.console.print(f"  {event.name}: {event.state}{seconds}  {event.remark}".rstrip(), markup=False)

    def _render(self) -> Group:
        """The table of groups as it stands."""
        with self._lock:
            events = list(self.states.values())
        groups: dict[str, list[Event]] = {}
        for event in events:
            groups.setdefault(event.name.partition("-")[0], []).append(event)
        grid = Table.grid(padding=(0, 1))
        for name, members in groups.items():
            grid.add_row(Text(f"  {name:<10}"), *_row(members))
        if all(event.state in ("done", "reused") for event in events):
            return Group(grid)
        return Group(grid, Text("  Ctrl-C is safe: run the same command to go on.", style="dim"))


def _row(members: list[Event]) -> tuple[Text | ProgressBar, Text, Text]:
    """Bar, count and remark of one group."""
    ended = [event for event in members if event.state in ("done", "reused")]
    running = [event for event in members if event.state in ("started", "progress")]
    failed = [event for event in members if event.state == "failed"]
    count = Text(f"{len(ended)}/{len(members)}")
    if failed:
        return Text("✗ failed", style="red"), count, Text(", ".join(event.name for event in failed))
    if len(ended) == len(members):
        seconds = sum(event.seconds for event in ended)
        remark = ended[-1].remark if len(members) == 1 else ""
        return Text("✓", style="green"), count, Text(f"{remark}  {seconds:.1f} s" if seconds else "reused")
    if not running and not ended:
        return Text("waiting", style="dim"), count, Text("")
    part = sum(event.done / event.total for event in running if event.total)
    now = running[-1] if running else None
    label = now.name.partition("-")[2] if now else ""
    remark = f"{label} {now.remark}" if now else ""
    bar = ProgressBar(total=len(members), completed=len(ended) + part, width=30)
    return bar, count, Text(remark.strip(), overflow="ellipsis", no_wrap=True)
