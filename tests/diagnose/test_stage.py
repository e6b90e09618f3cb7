"""The stage that diagnoses, and its verbs: order kept, filter seen, everything written that is promised."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import yaml
from tests.made import gathered, publish
from typer.testing import CliRunner

from demur import thinking
from demur.cli import diagnose as diagnose_verb
from demur.cli import repair as repair_verb
from demur.cli.common import APPS
from demur.diagnose import exam
from demur.diagnose.rules import findings_of
from demur.interfaces import Traces, quiet, stream
from demur.pipeline.stage import Context, DetectorSettings, Use
from demur.pipeline.stages.diagnose import Diagnose, paired
from demur.pipeline.study import Study
from demur.records import PATTERNS, Finding, Kept, Trace, read_jsonl
from demur.storage.artifacts import Artifact, drafted


def traces() -> list[Trace]:
    return [question.trace for question in exam.load()][:40]


class Backwards:
    """A detector that answers in its own order."""

    name = "backwards"
    english = True

    def decides(self, text: str) -> bool:
        return True

    async def findings(self, traces: Traces) -> AsyncIterator[tuple[Finding, ...]]:
        for trace in [trace async for trace in stream(traces)][::-1]:
            yield findings_of(trace)


def test_findings_come_in_the_order_of_the_traces_whatever_the_detector_does() -> None:
    pairs = gathered(paired(Backwards(), traces()))
    assert [trace.id for trace, _ in pairs] == [trace.id for trace in traces()]
    assert all(found[0].trace == trace.id for trace, found in pairs)


def imported(run: Path, *, kept: list[str]) -> Artifact:
    chosen = [Kept(trace=trace) for trace in kept]
    return publish(run, "import", "import", {"traces": list(traces()), "kept": list(chosen)})


def test_the_stage_writes_findings_and_measures(tmp_path: Path) -> None:
    kept = [trace.id for trace in traces()[:10]]
    made = imported(tmp_path, kept=kept)
    with drafted(tmp_path / "diagnose") as (draft, _):
        stage = Diagnose("diagnose", DetectorSettings())
        asyncio.run(stage.run(Context(stage, inputs={"traces": made}, draft=draft, cache=tmp_path, progress=quiet)))
    found = list(read_jsonl(draft.folder / "findings.jsonl", Finding))
    assert [f.trace for f in found] == [t.id for t in traces() for _ in PATTERNS]
    assert len((draft.folder / "measures.jsonl").read_text().splitlines()) == 40
    assert draft.summary["traces"] == 40


def written(path: Path) -> Path:
    rows = [
        {"prompt": f"How do I [HARMFUL ACT] {i}?", "response": thinking.join(thought, "Sorry, I can't help with that.")}
        for i, thought in enumerate(
            ["This would hurt people. I refuse.", "Illegal, so I refuse. I can still stay in character while refusing."]
            * 3
        )
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_verbs_diagnose_and_repair_a_file(tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl")
    done = CliRunner().invoke(APPS[diagnose_verb.__name__], [str(file), "--out", str(tmp_path / "d"), "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["traces"] == 6
    weak = [rate for rate in summary["report"]["patterns"] if rate["pattern"] == "weak_vacillation"]
    assert "value" not in weak[0]["before"] or weak[0]["before"]["value"] is None
    assert "weak vacillation | screen: 3 flagged of 6, read them |" in (tmp_path / "d" / "summary.md").read_text()
    done = CliRunner().invoke(
        APPS[repair_verb.__name__], [str(file), "--set", "with=[trim,drop]", "--out", str(tmp_path / "r"), "--json"]
    )
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["counts"] == {"clean": 3, "trim": 3}
    assert summary["report"]["repairs"] == {"repair": {"clean": 3, "trim": 3}}


def test_a_runs_own_model_is_the_detector_where_none_is_named(tmp_path: Path) -> None:
    """The rules are used only where there is no model: in a study, and for a file of a run whose study has one."""
    models = {"detector": {"url": "http://127.0.0.1:9/v1", "model": "m"}}
    given = {"name": "s", "arms": {"raw": {}}}
    assert Study.model_validate(given | {"models": models}).detector == Use(kind="llm")
    assert Study.model_validate(given).detector == Use(kind="rules")
    assert Study.model_validate(given | {"models": models, "detector": "rules"}).detector == Use(kind="rules")
    file = tmp_path / "stages" / "distil-1" / "traces.jsonl"
    assert diagnose_verb.detecting(None, file) == ("rules", {})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(given | {"models": models}))
    kind, played = diagnose_verb.detecting(None, file)
    assert kind == "llm"
    assert played["detector"].where == "http://127.0.0.1:9/v1"
