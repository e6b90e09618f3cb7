"""Benchmarks of reasoning: their protocols, LiveCodeBench's packing, and what several samples tell."""

from __future__ import annotations

import base64
import itertools
import json
import math
import pickle
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import ASSETS

from demur.bench import get_bench, livecodebench
from demur.bench.load import load_prompts
from demur.bench.passk import economy, estimate, pass_at_k
from demur.errors import UserError, WorkError
from demur.records import Estimate, Prompt, Result, Sampling
from demur.thinking import traced

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
    from demur.bench import gsm8k

    file = tmp_path / "gsm8k.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "6 * 200 = 1200\n#### 1,200"}) + "\n")
    assert [prompt.gold for prompt in gsm8k.read(file)] == ["1200"]


def test_livecodebench_unpacks_without_unpickling(cache: Path) -> None:
    first, second = livecodebench.read(ASSET)
    assert json.loads(first.gold or "")["count"] == 3
    assert len(list((cache / "tests").iterdir())) == 2
    assert second.category == "medium"
    assert "private" not in first.text
    assert [p.id for p in livecodebench.read_paper(ASSET)] == [first.id]
    assert [p.id for p in livecodebench.read_r1(ASSET)] == [first.id, second.id]


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


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n in range(1, 13):
        for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k)) if n <= 8 else None
            product = 1.0 if n - correct < k else 1 - math.prod(1 - k / i for i in range(n - correct + 1, n + 1))
            assert pass_at_k(n, correct, k) == pytest.approx(product)
            if draws is not None:
                assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("k", [0, 5])
def test_more_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(UserError, match="--samples"):
        pass_at_k(4, 2, k)


def graded(*counts: int, n: int = 4) -> list[tuple[str, bool | None]]:
    return [(f"p{i}", j < c) for i, c in enumerate(counts) for j in range(n)]


def test_estimates_are_over_problems() -> None:
    found = estimate(graded(4, 0, 2, 2), asked=4, k=1)
    assert found.value == pytest.approx(0.5)
    assert found.n == 4
    assert found.low is not None
    assert found.low < 0.3
    assert estimate(graded(4, 0, 1, 1), asked=4, k=4).value == pytest.approx(0.75)


def test_fewer_samples_than_asked_is_an_error() -> None:
    with pytest.raises(WorkError, match="3 samples and 4"):
        estimate(graded(4, 0, 2, 2)[:-1], asked=4, k=1)


def test_a_lost_or_undecided_sample_leaves_its_problem_unscored() -> None:
    lost = estimate(graded(4, 0, 2, 2)[:-1], asked=4, k=1, failed=["p3"])
    undecided = estimate([*graded(4, 0, 2, 2)[:-1], ("p3", None)], asked=4, k=1)
    assert lost == undecided
    assert (lost.n, lost.unscored) == (3, 1)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30))
def test_pass_at_1_is_the_mean(counts: list[int]) -> None:
    found = estimate(graded(*counts), asked=4, k=1)
    assert found.value == pytest.approx(sum(counts) / (4 * len(counts)))


def test_economy_is_a_ratio_of_sums() -> None:
    blank = Result(arm="a", bench="b", metric="", estimate=Estimate(value=None, low=None, high=None, n=0))
    traces = []
    for i, (tokens, thought) in enumerate([(100, 80), (300, 250), (200, 150), (400, 300)]):
        prompt = Prompt(text=f"question {i}", intent="maths", gold="1")
        traces.append(traced(prompt, "x", model="m", tokens_out=tokens, tokens_thinking=thought))
    right: dict[str, bool | None] = {t.id: i < 2 for i, t in enumerate(traces)}
    found = {result.metric: result.estimate for result in economy(traces, right, blank)}
    assert found["tokens_per_correct"].value == pytest.approx(1000 / 2)
    assert found["answer_tokens"].value == pytest.approx((20 + 50 + 50 + 100) / 4)
    nothing = {result.metric: result.estimate for result in economy(traces, dict.fromkeys(right, False), blank)}
    assert nothing["tokens_per_correct"].value is None
