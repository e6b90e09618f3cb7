"""Graphs of stages: reuse, resume, failure, workers that die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from demur.errors import UserError, WorkError
from demur.pipeline.run import Event, Kind, Node, Task, execute, plan
from demur.records import Prompt
from demur.storage import artifacts as runs
from demur.storage.artifacts import is_published

KINDS = {
    "make": Kind("tests.pipeline.test_run:make", 1),
    "join": Kind("tests.pipeline.test_run:join", 1),
    "fail": Kind("tests.pipeline.test_run:fail", 1),
    "die": Kind("tests.pipeline.test_run:die", 1),
}


def make(task: Task) -> None:
    """Write as many prompts as asked."""
    task.progress(0, 1, "")
    task.draft.write("prompts", [Prompt(text=f"p{i}", intent="benign") for i in range(task.node.settings["n"])])
    task.draft.summary["line"] = f"{task.node.settings['n']} made by {os.getpid() != task.node.settings.get('pid')}"


def join(task: Task) -> None:
    """Count the prompts of all inputs and of an outside file."""
    rows = sum(artifact.rows("prompts") for artifact in task.inputs.values())
    task.draft.summary["rows"] = rows + sum(len(p.read_text()) for p in task.files.values())


def fail(task: Task) -> None:
    """Fail as stages do."""
    raise WorkError("the server is down")


def die(task: Task) -> None:
    """Die as a worker does that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def graph(n: int = 2) -> list[Node]:
    return [
        Node(name="join", kind="join", settings={}, inputs={"a": "make-a", "b": "make-b"}),
        Node(name="make-a", kind="make", settings={"n": n}),
        Node(name="make-b", kind="make", settings={"n": 3}),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_done_once_and_reused(tmp_path: Path, workers: int) -> None:
    events: list[Event] = []
    first = execute(graph(), kinds=KINDS, out=tmp_path, workers=workers, watch=events.append)
    assert first["join"].manifest.summary["rows"] == 5
    assert {event.name for event in events if event.state == "done"} == {"join", "make-a", "make-b"}
    events.clear()
    execute(graph(), kinds=KINDS, out=tmp_path, workers=workers, watch=events.append)
    assert [event.state for event in events] == ["reused"] * 3


def test_a_changed_setting_changes_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    before = {item.node.name: item.fingerprint for item in plan(graph(), KINDS, tmp_path)}
    after = {item.node.name: item.fingerprint for item in plan(graph(4), KINDS, tmp_path)}
    assert before["make-b"] == after["make-b"]
    assert before["make-a"] != after["make-a"]
    assert before["join"] != after["join"]


def test_outside_files_count_by_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("same")
    two.write_text("same")

    def mark(path: Path) -> str:
        return plan([Node(name="x", kind="join", settings={}, files={"f": str(path)})], KINDS, tmp_path)[0].fingerprint

    assert mark(one) == mark(two)
    two.write_text("other")
    assert mark(one) != mark(two)
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

    monkeypatch.setattr("demur.storage.artifacts.hash_path", counted)
    nodes = [Node(name=f"n{i}", kind="join", settings={"i": i}, files={"f": str(path)}) for i in range(3)]
    execute(nodes, kinds=KINDS, out=tmp_path / "out")
    assert hashed == [path]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_keeps_what_was_done(tmp_path: Path, workers: int) -> None:
    nodes = [*graph(), Node(name="fail", kind="fail", settings={}, inputs={"a": "make-a"})]
    with pytest.raises(WorkError, match="the server is down"):
        execute(nodes, kinds=KINDS, out=tmp_path, workers=workers)
    kept = {item.node.name for item in plan(nodes, KINDS, tmp_path) if is_published(item.folder)}
    assert "make-a" in kept
    assert "fail" not in kept


def test_a_killed_worker_is_an_error_with_advice(tmp_path: Path) -> None:
    nodes = [Node(name="die", kind="die", settings={}), Node(name="make", kind="make", settings={"n": 1})]
    with pytest.raises(WorkError, match="was killed"):
        execute(nodes, kinds=KINDS, out=tmp_path, workers=2)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    from demur.storage.artifacts import locked

    with locked(tmp_path), pytest.raises(WorkError, match="in use"):
        execute(graph(), kinds=KINDS, out=tmp_path)
