"""The grader of code, on problems in the exact form of LiveCodeBench."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import ASSETS, gathered

from demur import thinking
from demur.bench import get_bench
from demur.bench.load import read_prompts
from demur.errors import UserError
from demur.judge import isolation, open_judge
from demur.judge.code import extract, same_output, same_value
from demur.judge.isolation import Run
from demur.records import Finish, Prompt, Verdict

ASSET = ASSETS / "livecodebench_tiny.jsonl"
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
SUM = "```python\ninput()\nprint(sum(map(int, input().split())))\n```"
PAIR = """```python
class Solution:
    def pairOf(self, nums: List[int], target: int) -> List[int]:
        print("some noise")
        seen = {}
        for j, x in enumerate(nums):
            if target - x in seen:
                return (seen[target - x], j)
            seen[x] = j
```"""


pytestmark = pytest.mark.usefixtures("cache")


def problems() -> list[Prompt]:
    return read_prompts(get_bench("livecodebench"), ASSET)


def judged(prompt: Prompt, answer: str, *, finish: Finish = "stop") -> Verdict:
    raw = thinking.join("```python\nprint('a draft')\n```\n### plan", answer)
    trace = thinking.traced(prompt, raw, model="m", finish=finish)

    (verdict,) = gathered(open_judge("code").verdicts([trace]))
    return verdict


@needs_bubblewrap
@pytest.mark.parametrize(
    ("answer", "label", "reason"),
    [
        (SUM, "correct", "3 tests passed"),
        ("### Answer\n\nHere:\n" + SUM + "\nDone.", "correct", "3 tests"),
        ("```python\nprint(6)\n```", "wrong", "test 2 of 3: wrong output"),
        ("```python\nprint(open('/etc/passwd'))\n```", "wrong", "test 1 of 3: error (FileNotFoundError"),
        ("```python\nprint(6\n```", "wrong", "SyntaxError"),
        (
            "```python\nfrom __future__ import annotations\ninput()\nprint(float(sum(map(int, input().split()))))\n```",
            "correct",
            "",
        ),
        ("I cannot do that.", "no_answer", "no program"),
    ],
)
def test_standard_input(answer: str, label: str, reason: str) -> None:
    found = judged(problems()[0], answer)
    assert found.label == label, found.reason
    assert reason in found.reason


@needs_bubblewrap
def test_functions() -> None:
    prompt = problems()[1]
    assert "def pairOf" in prompt.text
    assert judged(prompt, PAIR).label == "correct"
    assert judged(prompt, PAIR.replace("seen[target - x], j", "j, j")).label == "wrong"
    assert judged(prompt, "```python\ndef pairOf(nums, target): return [0, 1]\n```").label == "correct"


@needs_bubblewrap
def test_an_endless_program_is_wrong_by_time() -> None:
    from demur.judge.code import CodeJudge, load_tests

    judge = CodeJudge(limits=isolation.Limits(seconds=1))
    assert judge.fault("while True: pass", load_tests(problems()[0].gold)) == "test 1 of 3: time"


@needs_bubblewrap
def test_a_cut_answer_has_no_program() -> None:
    assert judged(problems()[0], SUM, finish="length").label == "no_answer"


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (SUM, "input()\nprint(sum(map(int, input().split())))"),
        ("```python\na = 1\n```\nor\n```python\na = 2\n```\noutput:\n```\n2\n```", "a = 2"),
        ("```\na = 1\n```", "a = 1"),
        ("```cpp\nint a;\n```", "int a;"),
        ("```python\na = 1\n```\n```text\n```python\na = 2\n```", "a = 2"),
        ("import sys\nprint(1)", "import sys\nprint(1)"),
        ("I would print 1.", None),
        ("n=int(input())\nprint(n)\n```", "n=int(input())\nprint(n)"),
        ("```python\na = 1", "a = 1"),
        ("```python\na = 1```", "a = 1"),
        ("Here it is: ```python\na = 1\n```", "a = 1"),
        ("~~~python\na = 1\n~~~", "a = 1"),
        ("- So:\n\n  ```python\n  if a:\n    b = 1\n  ```", "if a:\n  b = 1"),
        ("````markdown\ntext\n```python\na = 1\n```\n````", "a = 1"),
        ("```python\n```", None),
        ("", None),
    ],
)
def test_extraction(answer: str, program: str | None) -> None:
    assert extract(answer) == program


@given(st.text(alphabet="`python\n #a=1", max_size=120))
def test_extraction_never_raises(answer: str) -> None:
    found = extract(answer)
    assert found is None or found in answer


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("6\n", "6", True),
        ("  6  \n\n", "6\n", True),
        ("6.0", "6", True),
        ("1 2\n3", "1 2\n3", True),
        ("1 2 3", "1 2\n3", False),
        ("YES", "Yes", False),
        ("0.1", "0.10000", True),
        ("0.1001", "0.1", False),
        ("nan", "nan", True),
        ("", "6", False),
    ],
)
def test_output(printed: str, expected: str, same: bool) -> None:
    assert same_output(Run("ok", 0, 0.1, printed.encode(), b""), expected) is same


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [("noise\n[0, 1]\n", "[0, 1]", True), ("1", "1.0", True), ("[" * 100_000, "1", False), ("", "null", False)],
)
def test_value(printed: str, expected: str, same: bool) -> None:
    assert same_value(Run("ok", 0, 0.1, printed.encode(), b""), expected) is same


def test_a_gold_without_tests_is_an_error() -> None:
    from demur.judge.code import load_tests

    for gold in (None, "", "5", "{}", '{"tests": "0", "func_name": null}', '{"tests": [], "func_name": "a b"}'):
        with pytest.raises(UserError):
            load_tests(gold)


SEEKS = """
import gc, os, sys
seen = []
for folder in ("/box", "/tmp", "/packages", "/proc/self"):
    for root, _, names in os.walk(folder):
        for name in names if not root.startswith("/packages") else ():
            try:
                seen.append(open(os.path.join(root, name), errors="replace").read(1 << 16))
            except OSError:
                pass
frame = sys._getframe()
while frame:
    seen += [repr(frame.f_locals), repr(frame.f_globals)]
    frame = frame.f_back
seen += [one for one in gc.get_objects() if isinstance(one, str)]
found = [text for text in seen if "result-" + "7f3a" in text]
print("result-" + "7f3a" if found else "nothing")
"""
"""Looks for what is expected in files, in frames and in memory."""


@needs_bubblewrap
@pytest.mark.parametrize(
    "program",
    [
        SEEKS,
        "print('3 tests passed')",
        'import sys; print(\'ok\', file=sys.stderr); print(\'{"ending": "ok", "exit-code": 0}\')',
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "open('/dev/shm/x', 'w').write('x')",
    ],
)
def test_what_is_expected_is_not_inside_and_no_program_says_its_own_verdict(program: str) -> None:
    gold = json.dumps({"func_name": None, "tests": [{"input": "1", "output": "result-7f3a"}]})
    prompt = Prompt(text="Solve it.", intent="code", gold=gold)
    assert judged(prompt, f"```python\n{program}\n```").label == "wrong"
