"""Benchmarks of reasoning: their protocols, LiveCodeBench's packing, and what several samples tell."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path

import pytest
from tests.made import ASSETS

from demur.bench import get_bench, livecodebench
from demur.bench.forms import BOXED
from demur.bench.load import load_prompts, read_prompts
from demur.errors import UserError
from demur.records import Sampling

ASSET = ASSETS / "livecodebench_tiny.jsonl"


pytestmark = pytest.mark.usefixtures("cache")


def test_the_paper_asks_the_bare_question(data_dir: Path) -> None:
    bare = load_prompts(get_bench("math500@paper-v2"), data_dir=data_dir)
    own = load_prompts(get_bench("math500"), data_dir=data_dir)
    assert len(bare) == len(own) == 500
    assert all(prompt.text == prompt.question for prompt in bare)
    assert all(
        "\\boxed" in prompt.text and prompt.question == other.text for prompt, other in zip(own, bare, strict=True)
    )
    assert get_bench("math500@paper-v2").sampling == Sampling(temperature=0.6, top_p=0.95, max_tokens=32_768)
    assert get_bench("aime24@paper-v2").sampling.n == 4


def test_gsm8k_gold_stands_behind_the_mark(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "6 * 200 = 1200\n#### 1,200"}) + "\n")
    assert [prompt.gold for prompt in read_prompts(get_bench("gsm8k"), file)] == ["1200"]


@pytest.mark.parametrize("name", ["aime25", "aime25@paper-v2", "aime26", "aime26@paper-v2"])
def test_aime_of_other_years(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(
        json.dumps({"problem_idx": 1, "problem": "What is 68 + 2?", "answer": 70, "problem_type": ["Algebra"]})
    )
    (prompt,) = read_prompts(get_bench(name), file)
    assert (prompt.gold, prompt.question, prompt.intent) == ("70", "What is 68 + 2?", "maths")
    assert (BOXED in prompt.text) == ("paper" not in name)
    assert get_bench(name).sampling.n == 4


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("v5", ["2023-05-01", "2024-12-31"]),
        ("v6", ["2025-02-01", "2025-04-30"]),
        ("r1-0528", ["2024-12-31", "2025-02-01", "2025-04-30", "2025-05-31"]),
    ],
)
def test_livecodebench_by_window(name: str, within: list[str], tmp_path: Path, cache: Path) -> None:
    row = json.loads(ASSET.read_text().splitlines()[0])
    file, days = (
        tmp_path / "mine.jsonl",
        ["2023-05-01", "2024-12-31", "2025-02-01", "2025-04-30", "2025-05-31", "2025-06-01"],
    )
    file.write_text(
        "".join(
            json.dumps(row | {"contest_date": f"{d}T00:00:00", "question_content": f"Of {d}."}) + "\n" for d in days
        )
    )
    prompts = read_prompts(get_bench(f"livecodebench@{name}"), file)
    assert [day for day in days if any(day in prompt.text for prompt in prompts)] == within


def test_livecodebench_unpacks_without_unpickling(cache: Path) -> None:
    first, second = read_prompts(get_bench("livecodebench"), ASSET)
    assert json.loads(first.gold or "")["count"] == 3
    assert len(list((cache / "tests").iterdir())) == 2
    assert second.category == "medium"
    assert "private" not in first.text
    assert [p.id for p in read_prompts(get_bench("livecodebench@paper-v2"), ASSET)] == [first.id]
    assert [p.id for p in read_prompts(get_bench("livecodebench@r1"), ASSET)] == [first.id, second.id]


class Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("open('/tmp/demur-was-unpickled', 'w')",))


@pytest.mark.parametrize("held", [Boom(), ["a list"], {"a": 1}, 5, b"bytes"])
def test_a_pickle_that_is_not_one_text_is_refused(held: object) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(held))).decode()
    with pytest.raises(UserError, match="pickle"):
        livecodebench.private_tests(packed, "here")
    assert not Path("/tmp/demur-was-unpickled").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", ['[{"input": "1"}]', json.dumps([{"input": "ä" * 70_000}], ensure_ascii=False)])
def test_every_protocol_of_a_packed_text_is_read(protocol: int, text: str) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(text, protocol=protocol))).decode()
    assert livecodebench.private_tests(packed, "here") == json.loads(text)


@pytest.mark.parametrize("packed", ["!!!", "abcd", base64.b64encode(zlib.compress(b"nonsense")).decode()])
def test_damaged_tests_are_an_error(packed: str) -> None:
    with pytest.raises(UserError, match="private tests"):
        livecodebench.private_tests(packed, "here")
