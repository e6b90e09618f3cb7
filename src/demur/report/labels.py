"""Labels that people give in the viewer: files that `demur calibrate` reads, one for each kind of label.

    RUN/labels/refusal.jsonl    prompt, completion, label         RUN/labels/harm.jsonl   prompt, completion, label
    RUN/labels/patterns.jsonl   prompt, response, one 0 or 1 for each pattern

Each row says who gave it. The same trace may be labelled by several people; how far they agree is part of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from demur import stats
from demur.errors import UserError
from demur.records import PATTERNS, HarmLabel, RefusalLabel, Trace, Verdict, encode
from demur.report.read import given
from demur.storage import artifacts as runs
from demur.storage.artifacts import atomic_write

KINDS: dict[str, tuple[str, ...]] = {
    "refusal": get_args(RefusalLabel),
    "harm": get_args(HarmLabel),
    "patterns": PATTERNS,
}


class Labels:
    """The labels of a run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "labels"
        self._rows = {kind: self._read(kind) for kind in KINDS}

    def _read(self, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["id"], row["by"]): row for row in given(self.folder.parent, kind)}

    def put(
        self, trace: Trace, *, kind: str, value: str | list[str] | None, by: str, verdicts: Sequence[Verdict] = ()
    ) -> None:
        """Set one person's label of a trace (for patterns: the list of those present), or take it back by `None`.

        What judges said of the answer stands beside it as `JUDGE_label`, so that calibration shows them side by side.

        Raises:
            UserError: no such kind or label.
        """
        if kind not in KINDS:
            raise UserError(f"unknown kind of label '{kind}'. Allowed: {', '.join(KINDS)}.")
        values = [] if value is None else value if isinstance(value, list) else [value]
        if set(values) - set(KINDS[kind]) or (kind != "patterns" and len(values) > 1):
            raise UserError(f"no label {values} of {kind}. Allowed: {', '.join(KINDS[kind])}.")
        self.folder.mkdir(exist_ok=True)
        with runs.locked(self.folder):
            self._put(trace, kind, values if value is not None else None, by, verdicts)

    def _put(self, trace: Trace, kind: str, values: list[str] | None, by: str, verdicts: Sequence[Verdict]) -> None:
        """Read what others wrote meanwhile, change one label, write."""
        rows = self._rows[kind] = self._read(kind)
        rows.pop((trace.id, by), None)
        if values is not None:
            row: dict[str, Any] = {
                "id": trace.id,
                "by": by,
                "intent": trace.prompt.intent,
                "prompt": trace.prompt.question,
            }
            if kind == "patterns":
                row |= {"response": trace.raw} | {pattern: int(pattern in values) for pattern in PATTERNS}
            else:
                row |= {"completion": trace.answer or "", "label": values[0]}
                row |= {f"{v.judge}_label": v.label for v in verdicts if v.part == "answer" and v.label in KINDS[kind]}
            rows[trace.id, by] = row
        atomic_write(self.folder / f"{kind}.jsonl", b"".join(encode(row) + b"\n" for row in rows.values()))

    def of(self, trace: str) -> dict[str, dict[str, str | list[str]]]:
        """Kind -> person -> label of a trace."""
        found: dict[str, dict[str, str | list[str]]] = {}
        for kind, rows in self._rows.items():
            for (name, by), row in rows.items():
                if name == trace:
                    own: str | list[str] = [p for p in PATTERNS if row[p]] if kind == "patterns" else str(row["label"])
                    found.setdefault(kind, {})[by] = own
        return found

    def ids(self) -> set[str]:
        """The traces that anybody labelled."""
        return {name for rows in self._rows.values() for name, _ in rows}

    def agreement(self) -> dict[str, dict[str, Any]]:
        """For each kind: labels given, and where two people labelled the same traces, how far they agree."""
        summary: dict[str, dict[str, Any]] = {}
        for kind, rows in self._rows.items():
            people = sorted({by for _, by in rows})
            summary[kind] = {"labels": len(rows), "people": people}
            for i, a in enumerate(people):
                for b in people[i + 1 :]:
                    both = [name for name, by in rows if by == a and (name, b) in rows]
                    if both:
                        left, right = ([_value(kind, rows[name, who]) for name in both] for who in (a, b))
                        same = stats.rate([x == y for x, y in zip(left, right, strict=True)])
                        pair = {"a": a, "b": b, "n": len(both), "same": same, "kappa": stats.kappa(left, right)}
                        summary[kind].setdefault("pairs", []).append(pair)
        return summary


def _value(kind: str, row: dict[str, Any]) -> str:
    return "".join(str(row[p]) for p in PATTERNS) if kind == "patterns" else str(row["label"])
