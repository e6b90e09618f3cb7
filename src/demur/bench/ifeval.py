"""IFEval (Zhou et al. 2023, arXiv 2311.07911): instructions that a program can check; no judge model is needed.

The checks are those of the release, from the package `if-verifiable`, in their strict form. A reply is correct when it
follows all instructions of its prompt; the score is the share that it follows.
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
    prompts = []
    for row in raw_rows(path):
        text, columns = str(pick(row, "prompt", path)), ("instruction_id_list", "kwargs")
        names, kwargs = (listed(pick(row, column, path), column, row["_at"]) for column in columns)
        if not names or len(names) != len(kwargs) or not all(isinstance(args or {}, dict) for args in kwargs):
            raise UserError(f"{row['_at']}: column kwargs: an object for each instruction is wanted, and one at least.")
        given = [{key: value for key, value in (args or {}).items() if value is not None} for args in kwargs]
        gold, group = json.dumps(list(zip(names, given, strict=True))), str(names[0]).partition(":")[0]
        prompts.append(Prompt(text=text, intent="benign", source="ifeval", category=group, gold=gold))
    return prompts


class FollowsJudge(Grader):
    """Correct where all instructions are followed; the score is the share that is."""

    name = "ifeval"

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace; without a label where a check cannot run here."""
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
    """Whether an answer follows an instruction. Raises LookupError: the instruction or its data is unknown here."""
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
