"""Graphs of stages: reuse, resume, failure, workers that die."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from demur.errors import UserError, WorkError
from demur.pipeline.dag import plan
from demur.pipeline.run import Event, execute
from demur.pipeline.stage import Context, Stage
from demur.records import Prompt
from demur.settings import Strict, connection
from demur.storage import artifacts as runs
from demur.storage.artifacts import is_published


class Count(Strict):
    n: int = 0
    timeout: float = connection(1.0)


class Make(Stage[Count]):
    """Writes as many prompts as asked."""

    kind = "make"
    Settings = Count

    def run(self, context: Context) -> None:
        context.progress(0, 1, "")
        context.draft.write("prompts", [Prompt(text=f"p{i}", intent="benign") for i in range(self.settings.n)])
        context.draft.line = f"{self.settings.n} made"


class Join(Stage[Count]):
    """Counts the prompts of all inputs and of an outside file."""

    kind = "join"
    Settings = Count

    async def run(self, context: Context) -> None:
        rows = sum(len(list(artifact.read("prompts", Prompt))) for artifact in context.inputs.values())
        context.draft.summary["rows"] = rows + sum(len(p.read_text()) for p in self.files.values())


class Fail(Stage[Count]):
    """Fails as stages do."""

    kind = "fail"
    Settings = Count

    async def run(self, context: Context) -> None:
        context.draft.write("prompts", [])
        raise WorkError("the server is down")


class Die(Stage[Count]):
    """Dies as a worker does that the system kills."""

    kind = "die"
    Settings = Count

    def run(self, context: Context) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def graph(n: int = 2, **settings: Any) -> list[Stage[Any]]:
    a, b = Make("make-a", Count(n=n, **settings)), Make("make-b", Count(n=3))
    return [Join("join", Count(), inputs={"a": a, "b": b})]


@pytest.mark.parametrize("workers", [1, 2])
def test_done_once_and_reused(tmp_path: Path, workers: int) -> None:
    events: list[Event] = []
    first = execute(graph(), out=tmp_path, workers=workers, watch=events.append)
    assert first["join"].manifest.summary["rows"] == 5
    assert {event.name for event in events if event.state == "done"} == {"join", "make-a", "make-b"}
    events.clear()
    execute(graph(), out=tmp_path, workers=workers, watch=events.append)
    assert [event.state for event in events] == ["reused"] * 3


def test_a_changed_setting_changes_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    before = {item.name: item.fingerprint for item in plan(graph(), tmp_path)}
    after = {item.name: item.fingerprint for item in plan(graph(4), tmp_path)}
    assert before["make-b"] == after["make-b"]
    assert before["make-a"] != after["make-a"]
    assert before["join"] != after["join"]


def test_outside_files_count_by_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("same")
    two.write_text("same")

    def mark(path: Path) -> str:
        return plan([Join("x", Count(), files={"f": path})], tmp_path)[0].fingerprint

    before = mark(one)
    (tmp_path / "moved").mkdir()
    assert before == mark(one.rename(tmp_path / "moved" / "one.txt"))
    two.write_text("other")
    assert mark(two.rename(one)) != before
    with pytest.raises(UserError, match="no such file"):
        mark(tmp_path / "none")


def test_an_outside_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a model of many gigabytes, and many stages may read it."""
    path = tmp_path / "big"
    path.write_text("weights")
    hashed: list[Path] = []
    real = runs.hash_path

    def counted(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr("demur.pipeline.dag.hash_path", counted)
    stages = [Join(f"n{i}", Count(n=i), files={"f": path}) for i in range(3)]
    execute(stages, out=tmp_path / "out")
    assert hashed == [path]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_keeps_what_was_done(tmp_path: Path, workers: int) -> None:
    nodes = [*graph(), Fail("fail", Count(), inputs={"a": Make("make-a", Count(n=2))})]
    with pytest.raises(WorkError, match="the server is down"):
        execute(nodes, out=tmp_path, workers=workers)
    kept = {item.name for item in plan(nodes, tmp_path) if is_published(item.folder)}
    assert "make-a" in kept
    assert "fail" not in kept


def test_a_killed_worker_is_an_error_with_advice(tmp_path: Path) -> None:
    nodes = [Die("die", Count()), Make("make", Count(n=1))]
    with pytest.raises(WorkError, match="was killed"):
        execute(nodes, out=tmp_path, workers=2)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    from demur.storage.artifacts import locked

    with locked(tmp_path), pytest.raises(WorkError, match="in use"):
        execute(graph(), out=tmp_path)


def test_how_a_thing_is_reached_changes_no_fingerprint(tmp_path: Path) -> None:
    assert [i.fingerprint for i in plan(graph(), tmp_path)] == [
        i.fingerprint for i in plan(graph(timeout=9.0), tmp_path)
    ]


def test_what_a_failed_stage_had_written_is_kept_but_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(WorkError):
        execute([Fail("fail", Count())], out=tmp_path)
    [left] = tmp_path.glob("stages/fail-*/*")
    assert left.name == "prompts.jsonl"
    assert not is_published(left.parent)


def test_a_stage_of_another_size_is_done_again(tmp_path: Path) -> None:
    """A file that was cut at a line's end is whole JSON Lines, and wrong."""
    done = execute(graph(), out=tmp_path)
    path = done["make-b"].folder / "prompts.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n") + 1])
    events: list[Event] = []
    execute(graph(), out=tmp_path, watch=events.append)
    assert [event.name for event in events if event.state == "done"] == ["make-b"]
    assert path.read_bytes() == whole


def test_a_stage_of_another_content_is_refused(tmp_path: Path) -> None:
    done = execute(graph(), out=tmp_path)
    path = done["make-b"].folder / "prompts.jsonl"
    path.write_bytes(path.read_bytes().replace(b"p1", b"q1"))
    with pytest.raises(WorkError, match=r"prompts\.jsonl is damaged"):
        execute([Join("again", Count(n=1), inputs=graph()[0].inputs)], out=tmp_path)


def test_a_run_knows_its_present_stages(tmp_path: Path) -> None:
    execute(graph(2), out=tmp_path, add=False)
    execute(graph(4), out=tmp_path, add=False)
    assert len(list(tmp_path.glob("stages/*"))) == 5
    assert [one.manifest.settings["n"] for one in runs.artifacts(tmp_path) if one.manifest.kind == "make"] == [4, 3]
    execute([Make("more", Count(n=1))], out=tmp_path)
    assert list(runs.stage_graph(tmp_path)) == ["make-a", "make-b", "join", "more"]


class Hoard(Stage[Count]):
    """Needs much memory in small pieces, some of which outlive their neighbours, and forgets all of it in a circle."""

    kind, trains = "hoard", True
    Settings = Count

    def run(self, context: Context) -> None:
        import torch

        torch.ones(8 << 20)  # from now on the allocator takes pieces of this size from the heap
        pieces = [(torch.ones(1 << 18), torch.ones(64)) for _ in range(300)]
        circle: list[Any] = [pieces]
        circle.append(circle)
        HELD.extend(small for _, small in pieces)
        context.progress(int(held() / 2**20), None, "")


HELD: list[Any] = []


def held() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_worker_gives_memory_back_after_a_stage(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    most: list[int] = []
    execute([Hoard("a", Count())], out=tmp_path, watch=lambda event: most.append(event.done))
    assert max(most) * 2**20 - held() > 250 * 2**20, "of 300 MB"
