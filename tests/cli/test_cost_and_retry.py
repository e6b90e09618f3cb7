"""What a run cost, and which stages are made again when failed requests are asked again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.made import exit_code

from demur.cli.retry import lacking
from demur.records import Failure, Prompt
from demur.storage.artifacts import Manifest, artifacts, drafted
from demur.storage.reply_cache import FILE, Reply, ReplyCache, key_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    async def main(cache: ReplyCache) -> None:
        good, bad = Reply(content="x", tokens_in=1000, tokens_out=5, cost=0.25), Reply(failure="timeout", detail="60 s")
        await cache.put([(key_of(1), good), (key_of(2), bad)], label="target/eval-a")
        await cache.put([(key_of(3), good)], label="teacher/distil-b")

    with ReplyCache(tmp_path / "replies") as cache:
        asyncio.run(main(cache))
    return tmp_path


def test_cost_as_json_and_as_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("cost", str(run), "--json") == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["total"] == {
        "requests": 3,
        "failed": 1,
        "retries": 0,
        "tokens_in": 2000,
        "tokens_out": 10,
        "tokens_thinking": None,
        "cost": 0.5,
    }
    assert [(line["part"], line["stage"]) for line in costs["lines"]] == [("target", "eval-a"), ("teacher", "distil-b")]
    assert costs["failures"] == {"timeout": 1}
    assert exit_code("cost", str(run / "replies")) == 0
    shown = capsys.readouterr().out
    assert "demur retry" in shown
    assert all("–" in line for line in shown.splitlines() if line.startswith(("target", "teacher", "all"))), shown
    assert exit_code("cost", str(run / "nowhere")) == 2
    assert "holds no reply cache" in capsys.readouterr().err


def stage(run: Path, name: str, *, inputs: dict[str, str], failures: int = 0) -> str:
    with drafted(run / "stages" / name) as (draft, _):
        prompt = Prompt(text="q", intent="benign")
        draft.write("failures", [Failure(prompt=prompt, model="m", kind="timeout", detail="")] * failures)
        manifest = Manifest(name=name, kind="k", version=1, fingerprint=name, settings={}, inputs=inputs)
        return draft.publish(manifest).manifest.fingerprint


def test_retry_makes_again_what_lacked_replies_and_all_that_came_of_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = stage(run, "prompts", inputs={})
    distil = stage(run, "distil-b", inputs={"prompts": prompts}, failures=2)
    mix = stage(run, "mix", inputs={"traces": distil})
    stage(run, "train", inputs={"examples": mix})
    stage(run, "eval-a", inputs={"prompts": prompts})
    stage(run, "eval-c", inputs={"prompts": prompts})
    assert exit_code("retry", str(run)) == 0
    assert {artifact.manifest.name for artifact in artifacts(run)} == {"prompts", "eval-c"}
    err = capsys.readouterr().err
    assert "1 failed request will be asked again; 4 stages will be made again" in err
    with ReplyCache(run / "replies") as cache:
        assert cache.failures() == {}
    assert lacking(run, set()) == []


def test_cost_and_retry_of_a_damaged_cache_use_what_can_be_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "replies" / FILE
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert exit_code("cost", str(run), "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"]["requests"] == 2, "a failure is asked again"
    assert exit_code("retry", str(run)) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_serve_announces_a_script_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "demur", "serve", "script:echo", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        announced = json.loads(child.stdout.readline())
        assert announced["url"].startswith("http://127.0.0.1:")
        assert announced["model"] == "scripted"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 143


def test_serve_reports_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert exit_code("serve", "script:echo", "--set", "latncy=1") == 2
    assert "Allowed" in capsys.readouterr().err
    assert exit_code("serve", "script:echo", "--set", "faults.lateness=1") == 2
    assert "unknown faults: lateness" in capsys.readouterr().err
    assert exit_code("serve", str(tmp_path), "--set", "engine=sglang") == 2
    assert "vllm" in capsys.readouterr().err
    assert exit_code("serve", "http://127.0.0.1:1/v1") == 2
    assert "answers already" in capsys.readouterr().err
