from __future__ import annotations

from pathlib import Path

import pytest

from demur.errors import UserError
from demur.prompts import SOURCES, PromptsSettings
from demur.prompts.load import load, located
from demur.records import Prompt
from demur.registry import resolve
from demur.settings import validate


def read_generated(path: Path | None, *, n: int | None, seed: int) -> list[Prompt]:
    return [Prompt(text=f"{seed}/{i}", intent="benign", source=str(path)) for i in range(n or 7)]


HERE = f"{__name__}:read_generated"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "q.txt").write_text("".join(f"question {i}\n" for i in range(10)))
    return tmp_path / "q.txt"


def test_the_same_settings_give_the_same_prompts_in_the_files_order(questions: Path) -> None:
    def texts(**more: object) -> list[str]:
        return [
            p.text
            for p in load(PromptsSettings.model_validate({"source": str(questions), "intent": "harmful", **more}))
        ]

    assert texts(n=4, seed=1) == texts(n=4, seed=1)
    assert texts(n=4, seed=1) != texts(n=4, seed=2)
    assert texts(n=4) == sorted(texts(n=4))
    assert texts() == [f"question {i}" for i in range(10)]
    with pytest.raises(UserError, match="there are 10 prompts"):
        texts(n=11)


def test_questions_are_put_into_templates_and_keep_their_cluster(questions: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("A: {question}\nB: {question}!\nC: {question}?\n")
    made = load(PromptsSettings(source=str(questions), templates=tmp_path / "t.txt", per_question=2, intent="harmful"))
    assert len(made) == 20
    assert len({prompt.cluster for prompt in made}) == 10
    for prompt in made:
        assert prompt.question in prompt.text != prompt.question
        assert prompt.parent == Prompt(text=prompt.question, intent="harmful").id
    with pytest.raises(UserError, match="there are 3 templates"):
        load(PromptsSettings(source=str(questions), templates=tmp_path / "t.txt", per_question=4, intent="harmful"))
    with pytest.raises(UserError, match=r"q\.txt:1: a template without \{question\}"):
        load(PromptsSettings(source=str(questions), templates=questions, intent="harmful"))


def test_a_source_by_module_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "outsider", __import__("types").ModuleType("outsider"))
    monkeypatch.setattr("outsider.read", read_generated, raising=False)
    prompts = load(PromptsSettings(source="outsider:read", n=3, seed=5, intent="harmful"))
    assert [(p.text, p.intent) for p in prompts] == [(f"5/{i}", "harmful") for i in range(3)]


def test_a_file_is_found_in_the_data_folder(questions: Path) -> None:
    assert located(Path("q.txt"), questions.parent) == questions
    assert located(questions, None) == questions


def test_mistakes_are_said(questions: Path) -> None:
    with pytest.raises(UserError, match="in a study intent: harmful"):
        load(PromptsSettings(source=str(questions)))
    with pytest.raises(UserError, match="Did you mean 'mini-harmful'"):
        load(PromptsSettings(source="mini-harmfull"))
    with pytest.raises(UserError, match="is generated"):
        load(PromptsSettings(source="mini-harmful", data=questions))
    with pytest.raises(UserError, match="no such file"):
        load(PromptsSettings(source="nowhere.csv"))
    with pytest.raises(UserError, match="Did you mean 'source'"):
        validate(PromptsSettings, {"sourc": "x"}, where="study.yaml")
    with pytest.raises(UserError, match="give templates too"):
        validate(PromptsSettings, {"source": "x", "per_question": 2}, where="study.yaml")


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_there_and_those_from_files_say_so(name: str) -> None:
    assert callable(resolve("source", name, SOURCES))
    if name.startswith("mini-"):
        assert len(load(PromptsSettings(source=name, n=5))) == 5
    else:
        with pytest.raises(UserError, match="give data: FILE"):
            load(PromptsSettings(source=name))


def test_a_named_source_reads_its_local_copy(data_dir: Path) -> None:
    settings = PromptsSettings(source="xstest-train", data=data_dir / "xstest_prompts.csv", n=10, seed=3)
    assert len(load(settings)) == 10
