"""IFEval (Zhou et al. 2023, arXiv 2311.07911): instructions whose following a program can check; no judge model is needed.

The checks are those of the release, from the package `if-verifiable`, in their strict form. A reply is correct when it follows
all of a prompt's instructions; its score is the share that it follows.
"""

import json
from pathlib import Path
from typing import Any

from demur.bench.forms import listed, pick, raw_rows
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.judge.base import Grader
from demur.records import Prompt, Trace, Verdict
from demur.registry import missing


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One prompt a row: `prompt`, `instruction_id_list`, `kwargs`; the first instruction's group is its category."""
    made = []
    for row in raw_rows(path):
        text, lists = str(pick(row, "prompt", path)), ("instruction_id_list", "kwargs")
        names, kwargs = (listed(pick(row, said, path), said, row["_at"]) for said in lists)
        if not names or len(names) != len(kwargs) or not all(isinstance(one or {}, dict) for one in kwargs):
            raise UserError(f"{row['_at']}: column kwargs: an object for each instruction is wanted, and one at least.")
        given = [{key: value for key, value in (one or {}).items() if value is not None} for one in kwargs]
        gold, group = json.dumps(list(zip(names, given, strict=True))), str(names[0]).partition(":")[0]
        made.append(Prompt(text=text, intent="benign", source="ifeval", category=group, gold=gold))
    return made


class FollowsJudge(Grader):
    """Correct where all instructions are followed, with the share that is as the score."""

    name = "ifeval"

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace; none where a check lacks what it needs."""
        answer, reason = self.visible(trace)
        if answer is None:
            return self.new_verdict(trace.id, "no_answer", reason, score=0.0)
        failed, instructions = [], json.loads(trace.prompt.gold or "[]")
        for name, arguments in instructions:
            try:
                if not follows(answer, name, arguments, prompt=trace.prompt.text):
                    failed.append(name)
            except LookupError as error:
                why = " ".join(str(error).split())[:200]
                return self.new_verdict(trace.id, None, f"{name} cannot be checked here: {why}")
        score = 1 - len(failed) / max(1, len(instructions))
        return self.new_verdict(trace.id, "wrong" if failed else "correct", ", ".join(failed), score=score)


def follows(answer: str, name: str, arguments: dict[str, Any], *, prompt: str) -> bool:
    """Whether an answer follows one instruction, by the release's own check.

    Raises LookupError: the instruction is unknown, or its check needs data that is not on this machine.
    """
    try:
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
        from langdetect import DetectorFactory
    except ModuleNotFoundError as error:
        raise missing(error, "the benchmark ifeval") from error
    DetectorFactory.seed = 0
    check = INSTRUCTION_DICT[name](name)
    check.build_description(**arguments)
    if "prompt" in (check.get_instruction_args() or {}):
        check.build_description(prompt=prompt)
    return bool(answer.strip() and check.check_following(answer))
