"""What a study would ask, foreseen without asking; what fits into which memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from demur.pipeline import hardware as memory
from demur.pipeline import study
from demur.pipeline.dag import plan
from demur.pipeline.estimate import outlook
from demur.pipeline.hardware import Device
from demur.pipeline.resolve import make, resolve

ROOT = Path(__file__).resolve().parents[2]


def test_the_miniature_study_foreseen(tmp_path: Path) -> None:
    loaded = resolve(study.read(ROOT / "studies" / "mini.yaml"))
    seen = outlook(plan(loaded.stages, tmp_path))
    requests = {row["part"]: row["requests"] for row in seen["parts"]}
    assert requests["target"] == 7 * (5 * 100 + 30 + 8 * 30), "the searcher asks eight times a goal"
    # Five strategies ask for 1,200 harmful and 400 benign prompts, a constant one for none; maths once.
    assert requests["teacher"] == 5 * 1200 + 5 * 400 + 200
    assert loaded.missing == []
    assert all(row["done"] == 0 for row in seen["stages"])
    assert not list(tmp_path.iterdir()), "foreseeing writes nothing"


def test_prices_and_model_detectors_are_counted(tmp_path: Path) -> None:
    loaded = make(
        {
            "name": "priced",
            "models": {
                "teacher": {"url": "http://127.0.0.1:9/v1", "model": "t", "prices": {"input": 1.0, "output": 10.0}},
                "detector": "http://127.0.0.1:9/v1",
            },
            "prompts": {"harmful": {"source": "mini-harmful", "n": 50}},
            "distil": {"keep": "everything", "max_tokens": 100},
            "detector": "llm",
            "arms": {"a": {"format": "improved", "safety": 40}},
            "bench": ["mini_harm"],
        },
        where="test",
    )
    seen = outlook(plan(loaded.stages, tmp_path))
    by_part = {row["part"]: row for row in seen["parts"]}
    assert by_part["teacher"]["tokens_out_at_most"] == 50 * 100
    assert by_part["detector"]["requests"] == 3 * 50, "what cannot be read is asked again"
    [cost] = [row["cost"] for row in seen["stages"] if row["kind"] == "distil"]
    assert cost == pytest.approx((by_part["teacher"]["tokens_in_at_most"] * 1 + 5000 * 10) / 1e6)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7e9),
        ("Qwen/Qwen3-0.6B", 0.6e9),
        ("owner/model-360M-chat", 360e6),
        ("owner/Qwen2.5", None),
        ("", None),
    ],
)
def test_sizes_are_read_off_names(name: str, size: float | None) -> None:
    assert memory.parameters(name) == size


def test_sizes_are_read_off_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2000)
    assert memory.parameters(str(tmp_path)) == 1000


def test_what_is_lacking_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "devices", lambda: ())
    said = memory.lacking("x/R1-Distill-Qwen-7B", lora=False)
    assert "no GPU" in said
    assert "126 GB" in said
    assert "--set train.lora=true needs about 21 GB" in said
    assert memory.lacking("mini-lrm-a", lora=False) == ""
    monkeypatch.setattr(memory, "devices", lambda: (Device("big", 80.0),) * 2)
    assert memory.lacking("x/R1-Distill-Qwen-7B", lora=True) == ""
    assert "80 GB" in memory.lacking("x/R1-Distill-Qwen-7B", lora=False)
    assert memory.lacking("x/R1-Distill-Qwen-7B", lora=False, processes=2) == ""


def test_what_fits_together(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"target": "a/m-7B", "judge": "b/g-8B"}
    monkeypatch.setattr(memory, "devices", lambda: (Device("one", 80.0),))
    assert "all at the same time" in memory.together(models)[-1]
    monkeypatch.setattr(memory, "devices", lambda: (Device("one", 24.0),))
    assert "separate phases" in memory.together(models)[-1]
    monkeypatch.setattr(memory, "devices", lambda: (Device("one", 12.0),))
    assert "not even one by one" in memory.together(models)[-1]
