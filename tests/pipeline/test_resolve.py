"""Everything that is wrong with a study is reported before anything starts: all at once, each with its place and the nearest name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.made import exit_code

from demur.pipeline.dag import plan
from demur.pipeline.resolve import resolve
from demur.pipeline.study import read as load_study

HEAD = """\
name: wrong
base: mini-lrm-a
models:
  teacher: script:demur.mini.teacher:script
  guard: {hub: meta-llama/Llama-Guard-3-8B, engine: vllm}
prompts:
  harmful: {source: mini-harmful, n: 20}
arms:
  raw: {}
  short: {format: short, safety: 8}
"""
FAULTS = {
    "bench: [{name: mini_harm, attack: pirr}]": ("pirr", "'pair'"),
    "bench: [{name: mini_harm, attack: pair}]": ("'attacker'",),
    "bench: [{name: mini_harm, attack: {name: pair, streems: 2}}]": ("streems", "'streams'"),
    "bench: [{name: mini_harm, judge: lama_guard}]": ("lama_guard", "Did you mean 'llama_guard"),
    "bench: [{name: mini_harm, judge: llama_guard3}]": ("judge 'llama_guard3' is a model",),
    "bench: [{name: mini_harm, judge: {kind: llama_guard3, model: gard}}]": ("unknown model 'gard'", "'guard'"),
    "bench: [{name: mini_harm, judge: {kind: xstest_llm, model: guard}}]": ("xstest_llm", "guard"),
    "bench: [{name: mini_harm, judge: {kind: llama_guard3, model: guard, text: README.md}}]": (
        "no text that a file could",
    ),
    "bench: [{name: mini_harm, judge: {kind: rules, text: README.md}}]": ("no text that a file could",),
    "bench: [{name: mini_harm, judge: {kind: strongreject, model: teacher, text: README.md}}]": (
        "{question} and {text}",
    ),
    "bench: [mini_harm]\ndetector: {kind: rules, text: README.md}": ("no text that a file could",),
    "bench: [{name: mini_harm, sampling: {temprature: 0}}]": ("temprature", "'temperature'"),
    "bench: [{name: xstest@paper-v3}]": ("xstest@paper-v3", "'xstest@paper-v"),
    "bench: [{name: mini_harm, data: nowhere.jsonl}]": (),
    "benign_format: shorty": ("shorty", "'short'"),
    "filter: mini-harn": ("mini-harn", "'mini-harm'"),
    "detector: minny": ("minny", "'mini'"),
    "distil: {teachers: {shorty: teacher}}": ("shorty", "'short'"),
    "distil: {teacher: techer}": ("techer", "'teacher'"),
    "  own: {maths: {hub: 'thu-coai/LRM-Safety-Study::No CoT', n: 4}}": ("No CoT' names no file", "owner/name:FILE"),
    "mix: {dedup: none}": ("dedup", "'dedupe'"),
    "mix: {shares: {safety: {balanced: category}}}": ("balanced", "'balance'"),
    "train: {lrr: 1.0}": ("lrr", "'lr'"),
    "train: {stage: trane}": ("trane", "'train'"),
    "compare: [{a: short, b: shorter}]": ("shorter", "'short'"),
    "compare: [{a: short, b: short}]": ("arm 'short' is compared with itself",),
    "bench: [mini_harm]\ncompare: [{a: short, b: raw, bench: mini_hrm}]": ("'mini_hrm'", "Did you mean 'mini_harm'?"),
    "bench: [mini_harm, {name: mini_harm}]": ("'mini_harm' is measured in the same way already",),
    "seeds: [0, 1, 0]": ("a seed is given twice",),
    "  own: {format: short, safety: 2, seeds: [1, 1]}": ("a seed is given twice",),
    "  own: {format: short, safety: 2, repair: {with: trimm}}": ("'arms.own.repair.with' = 'trimm'", "'trim'"),
    "  own: {format: short, safety: 2, repair: {with: 'trimm,dropp'}}": ("'trimm", "Did you mean 'trim'?", "'drop'?"),
    "  raw: {format: short, safety: 2}": ("'arms.raw' is given twice, first in line 9",),
    "seeds: [1]\ntrain: {steps: 2}\ntrain: {steps: 3, steps: 3}": ("'train' is given twice", "'train.steps' is given"),
    "quick: {train.stps: 3}": ("unknown key 'stps' in 'train'", "'steps'"),
    "bench: [mini_harm]\nquick:\n  bench.0.sampling.temprature: 0": ("temprature", "'temperature'"),
    "quick: {arms: {zz: {format: shrt, safety: 3}}}": ("unknown strategy 'shrt'",),
    "bench: [mini_harm]\nquick: {bench.3.limit: 3}": ("quick: bench.3.limit: '3' is not a place in a list of 1",),
    "models: 5": ("'models' = 5: a mapping",),
    "bench: [{name: mini_harm, attack: {kind: pair, streams: 2}}]": ("a mapping with one: {name: pair, streams: 3}",),
    "bench: [{name: mini_harm, attack: {name: tap, width: 0, branches: 0, iterations: -3, streams: 0}}]": (
        "'width' = 0",
        "'branches' = 0",
        "'iterations' = -3",
        "'streams' = 0",
    ),
    "bench: [{name: mini_harm, attack: {name: crescendo, keep_last: 0, iterations: 0, streams: 0}}]": (
        "'keep_last' = 0",
        "'iterations' = 0",
        "'streams' = 0",
    ),
    "findings: [{claim: c, evidence: [{a: shrt, b: raw, expect: lower, by: 0.1}]}]": ("shrt", "'short'"),
    "bench: [mini_harm]\nfindings: [{claim: c, evidence: [{a: raw, b: short, metric: atack_success, expect: lower, by: 0.1}]}]": (
        "atack_success",
        "'attack_success'",
    ),
}


def report(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    """The report of `check study` (or another verb) on a file that is wrong."""
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert exit_code(*(verb or ("check", "study")), str(path)) == 2
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize("fault", [f for f, words in FAULTS.items() if words])
def test_a_fault_is_reported_with_its_place_and_the_nearest_name(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (HEAD + fault).count("\n") + 1
    for verb in (("check", "study"), ("plan",)):
        text = report(HEAD + fault + "\n", tmp_path, capsys, *verb)
        assert f"wrong.yaml:{line}: " in text
        for word in FAULTS[fault]:
            assert word in text


def test_quick_is_reported_where_the_file_has_it_with_and_without_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = HEAD + "bench: [mini_harm]\nquick:\n  train.stps: 3\n  arms:\n    zz: {format: shrt, safety: 3}\n"
    for verb in (("check", "study"), ("plan", "--quick")):
        reported = report(text, tmp_path, capsys, *verb)
        assert "wrong.yaml:13: unknown key 'stps'" in reported
        assert "wrong.yaml:15: unknown strategy 'shrt'" in reported
        assert "--set" not in reported
    assert "'quick' = 5: a mapping" in report(HEAD + "quick: 5\n", tmp_path, capsys, "plan", "--quick")
    assert "'arms' = 5: a mapping" in report("name: x\narms: 5\n", tmp_path, capsys)


def test_each_file_has_its_answer_and_a_folder_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.yaml").write_text(HEAD + "bench: [mini_harm]\ndata_dir: nowhere\n")
    files = [str(tmp_path / name) for name in ("absent.yaml", "", "good.yaml")]
    assert exit_code("check", "study", *files, "--json") == 2
    rows = json.loads(capsys.readouterr().out)["studies"]
    assert [row["sound"] for row in rows] == [False, False, True]
    assert "Is a directory" in rows[1]["errors"][0]
    assert rows[2]["missing"] == ["data_dir   nowhere: no such folder"]


def test_all_faults_of_a_file_are_reported_in_one_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benches = ["{limit: 3}", *_benches()]
    text = HEAD + "bench:\n" + "".join(f"  - {bench}\n" for bench in benches)
    text += "train: {lrr: 1}\nfilter: mini-harn\ncompare: [{a: short, b: shorter}]\n"
    reported = report(text, tmp_path, capsys)
    for word in (
        "pirr",
        "streems",
        "lama_guard",
        "gard",
        "temprature",
        "xstest@paper-v3",
        "lrr",
        "mini-harn",
        "shorter",
        "judge 'llama_guard3' is a model",
        "'xstest_llm' cannot be played by",
        "attack 'pair' needs a model",
    ):
        assert word in reported
    first = HEAD.count("\n") + 2
    for offset, bench in enumerate(benches):
        if FAULTS.get(f"bench: [{bench}]", True):
            assert re.search(rf"wrong\.yaml:{first + offset}\b", reported), bench
    assert "Traceback" not in reported


def _benches() -> list[str]:
    return [fault.removeprefix("bench: [").removesuffix("]") for fault in FAULTS if fault.startswith("bench: [{")]


ONE_OF_EACH = """\
base: mini-lrm-z                                        # 'mini-lrm-z' is not a model
models:
  teacher: script:demur.mini.teacher:script
  guard: {hub: meta-llama/Llama-Guard-3-8B, revison: b} # 'revison'; Did you mean 'revision'?
  lost: {nothing: 1}                                    # a model has one of url, path
  keyed: {url: "http://127.0.0.1:9/v1", key_env: NO_SUCH_KEY}
prompts:
  harmful: {source: nowhere.jsonl, n: 20}               # missing here: source: nowhere.jsonl: no such file
  benign: {source: mini-bening, n: 5}                   # unknown source 'mini-bening'; Did you mean 'mini-benign'?
distil: {teacher: techer, keep: evrything, begin: {traces: dfault}}  # 'techer'; Did you mean 'teacher'?; 'evrything'; 'dfault'
benign_format: shorty                                   # unknown strategy 'shorty'; Did you mean 'short'?
detector: minny                                         # unknown detector 'minny'; Did you mean 'mini'?
filter: {kind: mini-harn, model: gard}                  # 'mini-harn'; Did you mean 'mini-harm'?; 'gard'
mix: {dedup: none}                                      # 'dedup'; Did you mean 'dedupe'?
train: {steps: many, lora: {dropot: 0}}                 # 'train.steps' = 'many'; 'dropot' in 'train.lora'; Did you mean 'dropout'?
arms:
  raw: {train: {batch: 0}}                              # 'arms.raw.train.batch' = 0
  short: {format: shrt, safety: 8, benign: 2, distil: {samples: few}, train: {lrr: 1}}  # 'shrt'; 'samples' = 'few'; 'lrr'
  empty: {format: short}                                # has a format and no safety rows
  ready: {format: improved, safety: 8, teacher: lost, keep: everything, filter: rules}  # give one of the two
  sums: {maths: 3}
  file: {maths: {file: gone.jsonl, n: 3}}               # missing here: maths: gone.jsonl
  after: {format: short, safety: 3, after: shortt, decoding: primr}  # 'shortt'; 'primr'; Did you mean 'primer'?
  url: {base: "http://127.0.0.1:9/v1", format: short, safety: 2}     # cannot be trained
bench:
  - {name: mini_harm, attack: pirr}                     # 'pirr'; Did you mean 'pair'?
  - {name: mini_harm, attack: {name: pair, streams: several, streems: 2}}  # 'streems'; 'streams' = 'several'; its part 'attacker'
  - name: mini_harm
    attack:
      name: pair
      streams: 0                                        # 'streams' = 0
  - {name: xstest@paper-v3, judge: llama_guard3}        # 'xstest@paper-v2'; judge 'llama_guard3' is a model
  - {name: mini_harm, judge: {kind: lama_guard, model: guard}}            # unknown judge 'lama_guard'
  - {name: mini_harm, judge: {kind: xstest_llm, model: guard}, limit: 3}  # 'xstest_llm' cannot be played by
  - {name: mini_harm, sampling: {temprature: 0}, limit: 0}                # Did you mean 'temperature'?; 'bench.6.limit' = 0
  - {name: mini_harm, data: nothere.jsonl, limit: 9}                      # missing here: data: nothere.jsonl
  - {name: mini_arithmetic, judge: {kind: strongreject, model: keyed}}    # missing here: judge: NO_SUCH_KEY is not set
  - {limit: 3}                                          # 'name' is missing
probe: [{bench: mini_harm, attack: tap}]                # 'mini_harm' with attack 'tap' is not under 'bench'
tamper: [{name: t, rows: {benign: 2, train: {stps: 1}}, bench: mini_harm, arms: [shorty]}]  # 'stps'; unknown arm 'shorty'
seeds: [one]                                            # 'seeds.0' = 'one'
compare: [{a: short, b: shorter}]                       # unknown arm 'shorter'
findings:
  - claim: c
    evidence:
      - {a: shrt, b: raw, expect: less, by: 0}          # unknown arm 'shrt'; 'less'; Allowed: higher, lower, same
      - {a: short, b: raw, metric: atack_success, expect: lower, by: 0.1}  # 'attack_success'
fixed: [aime25]                                         # unknown benchmark 'aime25'
trian: 3                                                # unknown key 'trian'; Did you mean 'train'?
"""


@pytest.mark.parametrize("verb", [("check", "study"), ("plan",), ("run",)])
def test_one_mistake_of_each_kind_is_reported_in_one_answer(
    verb: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong names hide no wrong setting, and neither hides what is missing; each line of the file states what must be reported of it."""
    monkeypatch.chdir(tmp_path)
    reported = report(ONE_OF_EACH, tmp_path, capsys, *verb).splitlines()
    assert any("'name' is missing." in line for line in reported)
    for number, text in enumerate(ONE_OF_EACH.splitlines(), 1):
        here = [line for line in reported if re.search(rf"wrong\.yaml:{number}\b", line)]
        wanted = text.partition("# ")[2].split("; ") if "# " in text else []
        for words in wanted:
            assert any(words in line for line in here), f"line {number}: {words} is not reported"
        assert bool(here) == bool(wanted) or "sums" in text, f"line {number}: {here}"
    assert not any(Path(tmp_path / "runs").glob("*"))


def test_plan_and_run_report_the_same_and_ask_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(HEAD + "bench: [{name: mini_harm, attack: pirr}]\n")
    for verb in ("plan", "run"):
        assert exit_code(verb, str(path), "--out", str(tmp_path / "out")) == 2
        assert "Did you mean 'pair'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("item", "word"),
    [
        ("bench.0.sampling.temprature=0", "temprature"),
        ("train.lrr=1", "lrr"),
        ("mix.dedup=none", "dedup"),
        ("models.teacher.timeot=1", "timeot"),
        ("bench.0.attack={name: pair, streems: 1}", "streems"),
        ("arms.short.train.lrr=1", "lrr"),
    ],
)
def test_a_slip_in_an_override_is_reported(
    item: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "right.yaml"
    path.write_text(HEAD + "bench: [{name: mini_harm}]\n")
    assert exit_code("plan", str(path), "--set", item) == 2
    reported = capsys.readouterr().err
    assert word in reported
    assert "--set" in reported


def test_a_mistyped_attack_is_named_when_an_override_changes_a_setting_below_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "wrong.yaml").write_text(HEAD + "bench: [{name: mini_harm, attack: pirr}]\n")
    assert exit_code("plan", str(path), "--set", "bench.0.attack.width=5") == 2
    message = capsys.readouterr().err
    assert "wrong.yaml:11: 'bench.0.attack' = 'pirr': unknown attack 'pirr'. Did you mean 'pair'?" in message
    assert "'none'" not in message.partition("Allowed")[0]


@pytest.mark.parametrize(
    "name", ["qwen/7b", "../../x", "", "a b", ".hidden", "=cmd|x", "$\\frac$", "[/x]", "<b>x</b>", "a" * 65]
)
def test_names_of_arms_and_studies_are_no_paths(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a valid name" in report(HEAD + f"  '{name}': {{}}\n", tmp_path, capsys)
    assert "is not a valid name" in report(HEAD.replace("name: wrong", f"name: '{name}'"), tmp_path, capsys)


def test_a_judges_own_text_is_part_of_what_is_judged_by(tmp_path: Path) -> None:
    """A policy is a file that the study names: its content is in the fingerprint, its place is not."""
    found = []
    for name, text in (("a.md", "No weapons."), ("b/a.md", "No weapons."), ("a.md", "No poisons.")):
        policy = tmp_path / name
        policy.parent.mkdir(exist_ok=True)
        policy.write_text(text)
        use = f"{{kind: gpt_oss_safeguard, model: teacher, text: {policy}}}"
        (tmp_path / "s.yaml").write_text(HEAD + f"bench: [{{name: mini_harm, judge: {use}}}]\n")
        planned = plan(resolve(load_study(tmp_path / "s.yaml")).stages, tmp_path / "out")
        found.append(next(one.fingerprint for one in planned if one.stage.name.startswith("evaluate-raw")))
    assert found[0] == found[1] != found[2]


def test_what_names_arms_that_are_left_out_is_left_out_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "right.yaml"
    path.write_text(
        HEAD + "bench: [mini_harm]\ncompare: [{a: raw, b: short}]\n"
        "findings: [{claim: c, evidence: [{a: short, b: raw, expect: lower, by: 0.1}]}]\n"
    )
    for item in ("arms={raw: {}}", "arms.short=null"):
        assert exit_code("plan", str(path), "--set", item) == 0
        reported = capsys.readouterr().out
        assert "compare: 1 of 1 left out" in reported, item
        assert "findings: 1 of 1 left out" in reported, item
        assert "train" not in reported, item


def test_a_tampering_loses_the_arms_that_are_left_out_and_goes_with_its_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "right.yaml"
    tampering = "{{name: {}, rows: {{benign: 2}}, bench: mini_harm, steps: [1], arms: [{}]}}"
    pools = HEAD.replace("arms:\n", "  benign: {source: mini-benign, n: 4}\narms:\n")
    rows = [tampering.format("both", "raw, short"), tampering.format("last", "short"), tampering.format("every", "")]
    path.write_text(f"{pools}bench: [mini_harm]\ntamper: [{', '.join(rows)}]\n")
    loaded = load_study(path, sets=["arms.short=null"])
    assert loaded.study is not None
    assert [(use.name, use.arms) for use in loaded.study.tamper] == [("both", ("raw",)), ("every", ())]
    assert exit_code("plan", str(path), "--set", "arms.short=null") == 0
    shown = capsys.readouterr().out
    assert "tamper: 1 of 3 left out: they name arms left out" in shown
    assert "tamper: 1 of 3 now without the arms left out" in shown
    assert len(load_study(path).study.tamper) == 3  # type: ignore[union-attr]


def test_a_problem_behind_a_row_that_is_left_out_has_its_own_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "wrong.yaml").write_text(
        HEAD + "  long: {format: default, safety: 4}\nbench: [mini_harm]\ncompare:\n"
        "  - {a: raw, b: short}\n  - {a: raw, b: long, bench: mini_hrm}\n"
    )
    assert exit_code("plan", str(path), "--set", "arms.short=null") == 2
    assert "wrong.yaml:15: unknown benchmark 'mini_hrm'" in capsys.readouterr().err


def test_a_copy_that_is_not_the_release_is_reported_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sums.jsonl").write_text('{"problem": "What is 2 + 2?", "answer": "4"}\n')
    path = tmp_path / "other.yaml"
    path.write_text(HEAD + f"bench: [{{name: math500, data: {tmp_path / 'sums.jsonl'}}}]\n")
    assert exit_code("plan", str(path)) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "is not math500 as released: it holds 1 prompts, the release 500; its texts hash to" in output


def test_programs_of_a_model_want_isolation_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that asks for code ends at its start where bubblewrap lacks, and not at the stage that would run a program."""
    path = tmp_path / "code.yaml"
    path.write_text(HEAD + "bench: [{name: humaneval, data: none.jsonl}]\n")
    (tmp_path / "none.jsonl").write_text("")
    monkeypatch.setattr("demur.judge.isolation.shutil.which", lambda name: None)
    assert exit_code("plan", str(path)) == 2
    assert "bubblewrap (bwrap) is not installed" in " ".join(capsys.readouterr().out.split())


def test_what_is_missing_here_is_no_fault_of_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "right.yaml"
    path.write_text(HEAD + "bench: [advbench]\n")
    text = path.read_text().replace("bench: [advbench]", "bench: [{name: advbench, judge: rules}]")
    path.write_text(text)
    assert exit_code("check", "study", str(path)) == 0
    assert "missing here" in capsys.readouterr().out
    assert exit_code("run", str(path), "--out", str(tmp_path / "out")) == 2
    assert "nothing was asked yet" in capsys.readouterr().err
