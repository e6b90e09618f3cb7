"""Mistakes of a first day: each is a sentence that says what to do, with exit code 2, before anything was asked."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tests.made import exit_code

from demur.cli import SHOWN, _loading
from demur.testing.server import serving

STUDY = Path(__file__).resolve().parents[2] / "studies" / "mini.yaml"
EVAL = ("eval", "mini_harm", "--target", "script:stand_in", "--limit", "2")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((*EVAL, "--out", "afile"), "--out afile: File exists; name a folder"),
        (
            ("check", "contamination", "--examples", "rows.jsonl", "--data-dir", ".", "--out", "afile"),
            "--out afile: File exists",
        ),
        ((*EVAL, "--out", "/proc/x"), "--out /proc/x: No such file or directory; name a folder"),
        ((*EVAL, "--set", "bench.0.sampling.temprature=0"), "Did you mean 'temperature'"),
        ((*EVAL, "--judge", "lamaguard=http://127.0.0.1:9/v1"), "Did you mean 'llama_guard3' or 'llama_guard4'?"),
        ((*EVAL, "--data-dir", "nope"), "'nope' does not exist"),
        (("eval", "mini_harm", "--target", "script:stnd_in"), "unknown script 'stnd_in'. Did you mean 'stand_in'"),
        (("eval", "mini_harm", "--target", "nosuch:script"), "the Python module 'nosuch', which is not installed"),
        (
            ("eval", "typo_one:X", "--target", "script:stand_in"),
            "cannot be imported: SyntaxError: '(' was never closed (",
        ),
        (("eval", "typo_one:X", "--target", "script:stand_in"), "typo_one.py, line 2)."),
        (("eval", "mini_harm", "--attack", "typo_two:X", "--target", "script:stand_in"), "typo_two.py, line 1)."),
        (("eval", "mini_harm", "--judge", "typo_two:X", "--target", "script:stand_in"), "cannot import name 'nope'"),
        (
            ("eval", "mini_harm", "--attack", "typo_three:X", "--target", "script:stand_in"),
            "ZeroDivisionError: division",
        ),
        (("check", "study", "armless.yaml"), "this study has no arms. Write arms: {raw: {}}"),
        (("run", "armless.yaml"), "this study has no arms"),
        (("check", "shapes", "script:stand_in"), "check shapes asks servers: name a URL"),
        (("check", "shapes", "http://127.0.0.1:9/v1", "--key-env", "NOKEY"), "NOKEY is not set: export it"),
        (("diagnose", "prompts.csv"), "nothing to diagnose in prompts.csv: no replies"),
        (("repair", "prompts.csv"), "nothing to diagnose in prompts.csv: no replies"),
        (
            ("mix", "--share", "a=prompts.csv:1", "--out", "m"),
            "share 'a': nothing to train on in prompts.csv: no replies",
        ),
        (
            (*EVAL, "--target", "script:echo"),
            "--target is given twice, and takes one value. Run the command once for each",
        ),
        (("judge", "rows.jsonl", "--part", "answer", "--part=thinking"), "--part is given twice"),
        (
            (*EVAL, "--set", "max_tokens=9"),
            "a setting of each benchmark: bench.0.sampling.max_tokens=9, or --max-tokens 9",
        ),
        ((*EVAL, "--set", "top_p=0.5"), "--set top_p: a setting of each benchmark: bench.0.sampling.top_p=0.5"),
        (
            (*EVAL, "--set", "bench.9.limit=3", "--set", "bench.7=2"),
            "--set bench.9.limit=3: '9' is not a place in a list of 1 --set bench.7=2: '7' is not a place in a list of 1",
        ),
        (
            ("plan", str(STUDY), "--set", "bench.99.limit=3", "--set", "train.stps=3"),
            "is not a place in a list of 6 --set: unknown key 'stps' in 'train'. Did you mean 'steps'?",
        ),
        (("plan", str(STUDY), "--set", "bench.99=3", "--set", "bases=[1"), "not readable as YAML"),
        (("repair", "rows.jsonl", "--set", "with=trimm"), "'with' = 'trimm': no such value. Did you mean 'trim'?"),
        (("mix", "--share", "a=rows.jsonl:10.5.5%"), "--share a=rows.jsonl:10.5.5%: write NAME=FILE, NAME=FILE:200"),
        (("plan", str(STUDY), "--set", "arms=5"), "--set: 'arms' = 5: a mapping of keys to values is wanted"),
        (("plan", str(STUDY), "--set", "models=[a]", "--set", "models.a.b=1"), "--set: 'models' = ['a']: a mapping of"),
        ((*EVAL, "--set", "bench=[1"), "is not readable as YAML: while parsing a flow sequence in line 1, column 1:"),
        (("eval", "harmful=head.csv", "--target", "script:stand_in"), "head.csv: it has no rows."),
        (("plan", str(STUDY), "--set", "arms.short.safety=1500"), "Raise prompts.harmful.n, or take what there is:"),
        (("eval", "xstest", "--target", "script:stand_in"), "into a folder, and name that: --data-dir FOLDER"),
        (("run", str(STUDY), "--set", "seeds=3"), "--set: 'seeds' = 3: a list is wanted, such as [3]"),
        (("run", str(STUDY), "--set", "train=5"), "--set: 'train' = 5: a mapping of keys to values is wanted"),
        (("run", str(STUDY), "--set", "train.device=cuda"), "nvidia-smi shows no GPU here"),
        (("plan", str(STUDY), "--set", "bench=[xstest]"), "xstest: no local copy"),
        (("run", str(STUDY.with_suffix(".yml"))), "Did you mean"),
        (("mix", "--out", "m"), "--share NAME=FILE names a component"),
        (("diagnose", "binary.jsonl"), "not JSON"),
        (("judge", "rows.jsonl"), "states what the prompts want, and that decides how replies are counted"),
        (("distil", "rows.jsonl", "--set", "strategy=nocot"), "State it for all by --intent harmful (or benign"),
        (
            ("eval", "rows.jsonl", "--target", "script:stand_in"),
            "say what its prompts want, as harmful=rows.jsonl or as benign=rows.jsonl",
        ),
        (("train", "--base", "nosuch", "--examples", "afile"), "no such folder, and no hub id"),
        (("check", "template", "--base", "nosuch"), "no such folder, and no hub id"),
    ],
)
def test_a_mistake_is_a_sentence(
    args: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("COLUMNS", "300")
    Path("afile").touch()
    Path("rows.jsonl").write_text('{"prompt": "What is a hash?", "completion": "A number."}\n')
    Path("typo_one.py").write_text("import math\nX = (1,\n")
    Path("typo_two.py").write_text("from json import nope\n")
    Path("typo_three.py").write_text("X = 1 / 0\n")
    Path("armless.yaml").write_text("name: a\nprompts: {harmful: {source: mini, n: 2}}\n")
    Path("prompts.csv").write_text("prompt\nHow do I boil an egg?\nHow do I boil water?\n")
    Path("binary.jsonl").write_bytes(b"\0\1\2\xff")
    Path("head.csv").write_text("prompt,category\n")
    assert exit_code(*args) == 2
    shown = capfd.readouterr()
    text = re.sub(r"[\s│]+", " ", shown.err + shown.out)
    assert expected in text
    assert "Traceback" not in text
    assert not list(Path().glob("runs/*/replies")), "nothing was asked"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("eval", "advbench", "--data", "wrong.jsonl", "--target", "script:stand_in"), "no column query or goal or"),
        (("eval", "harmful=wrong.jsonl", "--target", "script:stand_in"), "there are: foo, bar"),
        (("plan", str(STUDY), "--set", "bench=[harmful=wrong.jsonl]"), "there are: foo, bar"),
        (("plan", str(STUDY), "--set", "arms.raw={safety: {file: wrong.jsonl, n: 1}}"), "no form has a use for all"),
        (("mix", "--share", "safety=wrong.jsonl:2", "--out", "m"), "no form has a use for all of its columns"),
        (("diagnose", "wrong.jsonl"), "no form has a use for all of its columns"),
        (("distil", "wrong.jsonl", "--set", "strategy=nocot"), "no form has a use for all of its columns"),
        (("distil",), "no prompts: name a file of them"),
    ],
)
def test_wrong_columns_are_noticed_before_anything_starts(
    args: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.jsonl").write_text('{"foo": "a", "bar": "b"}\n{"foo": "c", "bar": "d"}\n')
    assert exit_code(*args) == 2
    shown = "".join(capfd.readouterr())
    assert expected in shown
    assert "started" not in shown


def test_a_verb_that_is_slow_to_start_reports_that_it_is_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(
        "import time\ntime.sleep(1.3)\nfrom demur.bench import get_bench\nMINI = get_bench('mini_harm')\n"
    )
    assert exit_code("eval", "slow:MINI", "--target", "script:stand_in", "--limit", "2") == 0
    err = capfd.readouterr().err
    assert err.index("loading …") < err.index("eval · 1 arm"), "before the first line of the run"
    SHOWN.set()
    _loading()
    assert "loading" not in capfd.readouterr().err, "nothing where something was shown"


def test_a_script_with_a_mistake_of_its_own_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("typo_four.py").write_text("def answer(:\n")
    assert exit_code("eval", "mini_harm", "--target", "script:typo_four:answer", "--limit", "2") == 2
    shown = capfd.readouterr().err
    assert "typo_four.py, line 1)." in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("verb", [("serve", "script:echo"), ("view", "run", "--no-browser")])
def test_a_port_in_use_is_a_sentence(verb: tuple[str, ...], tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-m", "demur", *EVAL, "--out", "run"], cwd=tmp_path, check=False)
    assert made.returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "demur", *verb, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        port = taken.getsockname()[1]
    assert done.returncode == 2
    assert done.stderr == f"port {port} is taken; name another with --port, or 0 for any that is free.\n"
    assert "Traceback" not in done.stderr


def test_the_correct_address_is_found_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving("stand_in") as server:
        for wrong in (server.url.removesuffix("/v1"), f"{server.url}/chat/completions"):
            assert exit_code("eval", "mini_harm", "--target", wrong, "--limit", "2", "--out", "o") == 2
            err = capfd.readouterr().err
            assert f"{server.url} does: give that address" in err
            assert "cannot be reached" not in err, "it was"
        assert exit_code("eval", "mini_harm", "--target", server.url, "--limit", "2", "--out", "o") == 0
        capfd.readouterr()
        assert exit_code("runs", "o", "--json") == 0
        (row,) = json.loads(capfd.readouterr().out)["runs"]
        assert row["model"] == f"scripted at {server.url}", "once, and no list of the programming language"


class Guarded(BaseHTTPRequestHandler):
    """A server that wants a key which nobody has."""

    def do_GET(self) -> None:
        self.send_error(401)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with suppress(ConnectionError):  # a client that has seen enough hangs up
            self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_key_that_is_refused_is_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "abc")
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        words = ("eval", "mini_harm", "--limit", "2", "--out", str(tmp_path / "o"), "--target", url)
        assert exit_code(*words) == 2
        assert "--key-env NAME" in capfd.readouterr().err
        for more in ((), ("--model", "m")):
            assert exit_code(*words, "--key-env", "MY_KEY", *more) in (1, 2)
            assert "read from MY_KEY (key_env): is it right?" in capfd.readouterr().err
        server.shutdown()


LOADING = """
import signal, sys, time
from demur.cli import main
from demur.models import local

def never(*_, **__):
    print("loading", flush=True)
    time.sleep(100)

local.LocalModel.__init__ = never
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
main(["eval", "mini_harm", "--target", "mini-lrm-a", "--limit", "2", "--out", sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_model_that_is_still_loading_is_not_waited_for(how: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADING, str(tmp_path / "o")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loading\n"
        child.send_signal(how)
        _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert "run the same command to go on" in err
    assert "Traceback" not in err


IN_A_CALLBACK = """
import asyncio, os, signal
from demur.cli import _terminated

def callback():
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(1000))

async def work():
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(20)

signal.signal(signal.SIGTERM, _terminated)
asyncio.run(work())
"""


def test_a_sigterm_that_meets_a_callback_of_the_event_loop_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_CALLBACK], check=False, timeout=60, capture_output=True)
    assert done.returncode == 143


def test_a_folder_that_is_not_there_is_not_called_empty(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for verb in ("view", "status"):
        assert exit_code(verb, str(tmp_path / "nope")) == 2
        assert "nope is not a folder" in " ".join(capfd.readouterr().err.split())


def test_compare_reports_that_another_part_was_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer, thinking = str(tmp_path / "answer"), str(tmp_path / "thinking")
    assert exit_code(*EVAL, "--out", answer) == 0
    assert exit_code("judge", answer, "--judge", "mini", "--part", "thinking", "--out", thinking) == 0
    capfd.readouterr()
    assert exit_code("compare", f"{answer}:stand_in", f"{thinking}:stand_in") == 2
    err = " ".join(capfd.readouterr().err.split())
    assert "by mini (thinking)" in err
    assert "on nothing" not in err


def test_a_screen_counts_traces_without_thinking(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"How do I do {n}?", "response": "I cannot help with that."} for n in range(3)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert exit_code("diagnose", str(pairs), "--out", str(tmp_path / "run")) == 0
    assert "0 of 3 traces (3 without thinking) flagged" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("verb", [("check", "study"), ("plan",), ("run",)])
def test_a_study_without_stages_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text("name: x\narms: {raw: {}}\n")
    assert exit_code(*verb, "empty.yaml") == 2
    shown = capfd.readouterr()
    assert "there is nothing to do" in " ".join((shown.out + shown.err).split())
    assert not Path("runs").exists()


def test_a_share_that_no_prompts_can_fill_is_reported_before_a_teacher_is_paid(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "s.yaml"
    text = (
        "name: s\nmodels: {{teacher: 'script:demur.mini.teacher:script'}}\nprompts: {{harmful: {{source: mini-harmful, n: 20}}}}\n"
        "distil: {{samples: 2}}\nmix: {{dedupe: {dedupe}}}\narms: {{a: {{format: improved, safety: {safety}}}}}\n"
    )

    def output(dedupe: str, safety: str) -> str:
        study.write_text(text.format(dedupe=dedupe, safety=safety))
        codes = {exit_code(*verb, str(study)) for verb in (("check", "study"), ("plan", "--out", str(tmp_path / "o")))}
        shown = " ".join("".join(capfd.readouterr()).split())
        assert codes == ({2} if "at most: prompts" in shown else {0}), shown
        return shown

    assert (
        f"{study}:6: share 'safety' wants 50 rows and can have 40 at most: prompts.harmful gives 20 prompts, 2 samples each"
        in output("none", "50")
    )
    assert "can have 20 at most: prompts.harmful gives 20 prompts; rows with the same question count once" in output(
        "near", "30"
    )
    for dedupe, safety in (("none", "40"), ("near", "20"), ("near", "{n: up to 50}")):
        assert "at most: prompts" not in output(dedupe, safety)


def test_a_server_that_is_down_is_reported_before_another_is_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["eval", "mini_harm", "--limit", "2", "--out", str(run), "--model", "scripted", "--target"]
    with serving("stand_in") as server:
        judge = ("--judge", "llama_guard3=http://127.0.0.1:9/v1", "--set", "models.judge.model=guard")
        assert exit_code(*words, server.url, *judge) == 2
        err = " ".join(capfd.readouterr().err.split())
        assert "judge: http://127.0.0.1:9/v1 cannot be reached: ClientConnectorError: Cannot connect to host" in err
        assert "Nothing was asked. Start what is down" in err
        assert "ssl:default" not in err
        assert exit_code("cost", str(run), "--json") == 0
        assert json.loads(capfd.readouterr().out)["lines"] == []
        assert exit_code(*words, server.url) == 0
    # Its replies are kept: it is asked nothing, and may be down.
    assert exit_code(*words, server.url, "--judge", "rules") == 0
    assert exit_code(*words, "http://127.0.0.1:9/v1") == 2


def test_the_intent_of_a_runs_prompts_cannot_be_given_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert exit_code(*EVAL, "--out", str(run)) == 0
    (traces,) = run.glob("stages/evaluate-*/traces.jsonl")
    for source, expected in ((run, "--intent and --limit are for files"), (traces, "leave the intent (benign) out")):
        assert exit_code("judge", str(source), "--intent", "benign", "--out", str(tmp_path / "o")) == 2
        assert expected in " ".join(capfd.readouterr().err.split())
    assert exit_code("judge", str(traces), "--out", str(tmp_path / "o")) == 0


def test_a_file_without_intents_is_reported_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (rows := tmp_path / "rows.jsonl").write_text('{"prompt": "What is a hash?", "completion": "A number."}\n')
    assert exit_code("judge", str(rows), "--out", str(tmp_path / "o")) == 2
    assert " ".join("".join(capfd.readouterr()).split()).count("what the prompts want") == 1
    assert not (tmp_path / "o").exists()


def test_a_report_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    assert exit_code("report", str(tmp_path / "nope"), "--out", str(tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()
