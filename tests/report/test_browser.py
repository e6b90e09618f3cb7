"""The report and the viewer in a real browser, with text that would do harm if it could."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.request import Request, urlopen

import msgspec
import pytest
from tests.made import ASSETS
from tests.report.made import HOSTILE, make_run, prompts_of, publish, trace_of

from demur import report
from demur.errors import UserError
from demur.judge import calibrate
from demur.records import HarmLabel, Prompt, RefusalLabel, Span, Verdict
from demur.report import labels as worth
from demur.report.format import pieces, visible
from demur.report.index import Index
from demur.report.labels import Labels
from demur.report.page import page as whole
from demur.report.read import read
from demur.report.viewer import serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000
"""Milliseconds that a busy machine may take."""
NEEDED = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browser_needed(test: Any) -> Any:
    """Pages are drawn by the processor here: seconds each."""
    return pytest.mark.slow(NEEDED(test))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("hostile") / "run", prompts=12, seeds=(0,), text=HOSTILE)


class Served:
    """A viewer in a thread of its own."""

    def __init__(self, run: Path) -> None:
        self.url = ""
        ready = threading.Event()

        def note(url: str) -> None:
            self.url = url
            ready.set()

        self.loop = asyncio.new_event_loop()
        self.task: asyncio.Task[None] | None = None

        def work() -> None:
            asyncio.set_event_loop(self.loop)
            self.task = self.loop.create_task(serve(run, ready=note))
            try:
                self.loop.run_until_complete(self.task)
            except asyncio.CancelledError:
                pass
            finally:
                self.loop.close()

        self.thread = threading.Thread(target=work)
        self.thread.start()
        assert ready.wait(20)

    def stop(self) -> None:
        assert self.task is not None
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(10)

    def status(
        self, path: str = "", *, headers: dict[str, str] | None = None, data: bytes | None = None
    ) -> tuple[int, bytes]:
        from urllib.error import HTTPError

        try:
            with urlopen(Request(self.url + path, headers=headers or {}, data=data)) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()


@pytest.fixture(scope="module")
def served(hostile: Path) -> Iterator[Served]:
    viewer = Served(hostile)
    yield viewer
    viewer.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """A page, and all that it complains about or asks of others."""
    page = chromium.new_page(**options)
    page.set_default_timeout(PATIENCE)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append("dialog"))
    page.on(
        "request", lambda request: None if request.url.startswith(url.split("#")[0]) else trouble.append(request.url)
    )
    page.goto(url)
    return page, trouble


@browser_needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(chromium: Any, hostile: Path, scheme: str) -> None:
    path = report.write(hostile)["html"]
    page, trouble = opened(chromium, path.as_uri(), viewport={"width": 1000, "height": 800}, color_scheme=scheme)
    assert "owned" not in page.title()
    assert page.locator("figure svg").count() >= 4
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000, "nothing is wider than the window"
    hidden = page.locator("details.mask .text").first
    assert not hidden.is_visible(), "harmful text is folded"
    page.click("#show")
    assert hidden.is_visible()
    assert page.locator("mark").first.is_visible()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.className") == "sample"
    for open_now in (False, True):
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.querySelector('details.mask').open") is open_now
    text = page.locator("#samples").inner_text()
    assert "<script>" in text, "what a model wrote is shown as it is"
    assert page.locator("#samples script, #samples img").count() == 0
    assert page.evaluate("document.title.includes('owned')") is False
    page.click(
        "#results td a.to >> nth=0"
    )  # from a file there is no viewer to lead to: a trace of the kind, and how to see all
    assert "demur view RUN, then open its address with #arm=raw" in page.inner_text("#wanted")
    where = page.evaluate("document.activeElement.dataset.where")
    assert where.startswith("arm=raw&bench=mini_harm&attack=none")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert trouble == []
    page.close()


@browser_needed
def test_the_viewer_in_a_browser(chromium: Any, served: Served, hostile: Path) -> None:
    from playwright.sync_api import expect

    page, trouble = opened(chromium, served.url, viewport={"width": 1280, "height": 800})
    page.wait_for_selector("#rows li")
    assert "of 216" in page.inner_text("#count")
    page.select_option("select[data-kind=arm]", "default")
    expect(page.locator("#count")).to_contain_text("of 48")
    page.select_option("select[data-kind=bench]", "mini_harm")
    expect(page.locator("#count")).to_contain_text("of 24")
    expect(page.locator("#left .masked").nth(1)).to_be_attached()
    page.keyboard.press("Escape")
    page.keyboard.press("h")
    expect(page.locator("#left .masked")).to_have_count(0)
    assert "<script>" in page.inner_text("#left .thinking")
    assert "harm question 0" in page.inner_text("#rows li >> nth=0"), "titles distinguish rows when they may be read"
    page.keyboard.press("j")
    page.keyboard.press("c")
    expect(page.locator("#right h2")).to_be_visible()
    assert page.get_attribute("#rows li >> nth=1", "aria-current") == "true"
    assert page.inner_text("#right h2") != page.inner_text("#left h2")
    assert page.locator("#left ins").count() > 0, "what the two do not have in common is marked"
    page.keyboard.press("x")
    page.fill("#by", "ann")
    page.keyboard.press("Escape")
    for key in ("3", "s", "q", "t"):
        page.keyboard.press(key)
        page.wait_for_selector(f"#left button[aria-pressed=true]:has-text('({key})')")
    rows = [json.loads(line) for line in (hostile / "labels" / "patterns.jsonl").read_text().splitlines()]
    assert [(r["by"], r["lack_of_safety_awareness"], r["inconsistency"], r["weak_vacillation"]) for r in rows] == [
        ("ann", 1, 1, 0)
    ]
    page.fill("#q", "nonesuch word")
    expect(page.locator("#count")).to_contain_text("nothing matches")
    assert page.title() == "traces · demur"
    assert trouble == []
    page.close()


def settled(page: Any) -> None:
    """Wait until everything that was asked for is there."""
    page.wait_for_selector("body[aria-busy=false]")


def slow(page: Any, seconds: float = 0.4) -> None:
    """Every trace comes late from now on."""

    def late(route: Any) -> None:
        time.sleep(seconds)
        route.continue_()

    page.route("**/api/trace/**", late)


@browser_needed
def test_keys_wait_for_the_trace_that_they_are_about(chromium: Any, tmp_path: Path) -> None:
    """They were dropped before the first trace, and labelled the old one while the next was loading."""
    run = make_run(tmp_path / "run", prompts=3, seeds=(0,))
    viewer = Served(run)
    try:
        page, trouble = opened(chromium, viewer.url + "#arm=raw&bench=mini_benign")
        settled(page)
        page.fill("#by", "ann")
        page.keyboard.press("Escape")
        slow(page)
        rows = page.locator("#rows li")
        for key in ("j", "2", "j", "3", "k", "k"):
            page.keyboard.press(key)
        settled(page)
        assert rows.nth(0).get_attribute("aria-current") == "true"
        labels = [json.loads(line) for line in (run / "labels" / "refusal.jsonl").read_text().splitlines()]
        asked = [page.locator("#rows li .head").nth(place).inner_text() for place in (1, 2)]
        kinds = get_args(RefusalLabel)
        assert [(row["prompt"], row["label"]) for row in labels] == [(asked[0], kinds[1]), (asked[1], kinds[2])]
        assert trouble == []
        page.close()
    finally:
        viewer.stop()


@browser_needed
def test_an_address_that_is_changed_while_a_trace_loads_is_kept(chromium: Any, served: Served) -> None:
    from playwright.sync_api import expect

    page, trouble = opened(chromium, served.url + "#arm=short")
    settled(page)
    slow(page)
    page.keyboard.press("j")
    page.evaluate("location.hash = 'arm=raw&bench=mini_benign'")
    page.wait_for_timeout(600)
    assert "arm=raw" in page.url
    page.reload()
    expect(page.locator("#count")).to_contain_text("of 12")
    assert page.input_value("select[data-kind=arm]") == "raw"
    assert trouble == []
    page.close()


@browser_needed
def test_counts_of_filters_follow_the_other_filters(chromium: Any, served: Served) -> None:
    from playwright.sync_api import expect

    page, trouble = opened(chromium, served.url)
    option = page.locator("select[data-kind=bench] option[value=mini_harm]")
    expect(option).to_have_text("mini harm (96)")
    page.select_option("select[data-kind=arm]", "short")
    expect(option).to_have_text("mini harm (24)")
    page.select_option("select[data-kind=attack]", "mini-seen")
    expect(option).to_have_text("mini harm (12)")
    expect(page.locator("select[data-kind=bench] option[value=mini_benign]")).to_have_text("mini benign (0)")
    expect(page.locator("select[data-kind=arm] option[value=raw]")).to_have_text("raw (12)")
    assert trouble == []
    page.close()


@browser_needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_viewer_on_a_telephone(chromium: Any, served: Served, scheme: str) -> None:
    from playwright.sync_api import expect

    page, trouble = opened(chromium, served.url, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("#left .thinking").bounding_box()
    assert box["width"] > 300, "there is room to read"
    assert page.locator("#left table td >> nth=0").bounding_box()["width"] > 60
    assert page.locator("header").bounding_box()["height"] < 100, "the controls leave the screen to the traces"
    assert page.locator("#left h2").bounding_box()["y"] < 500
    assert not page.locator("#filters").is_visible()
    page.click("#fold")
    page.select_option("select[data-kind=arm]", "short")
    expect(page.locator("#fold")).to_have_text("filters (1)")
    page.click("#fold")
    assert not page.locator("#filters").is_visible()
    page.click("#left .labels button >> nth=0")
    expect(page.locator("#by")).to_be_focused()  # who labels is asked for, so the field is unfolded
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert trouble == []
    page.close()


@browser_needed
def test_filters_and_trace_stand_in_the_address(chromium: Any, served: Served, hostile: Path) -> None:
    from playwright.sync_api import expect

    page, trouble = opened(
        chromium, served.url + "#arm=short&bench=mini_harm&attack=mini-seen", viewport={"width": 1280, "height": 800}
    )
    expect(page.locator("#count")).to_contain_text("of 12")
    assert page.input_value("select[data-kind=arm]") == "short"
    expect(page.locator("#left h2")).to_contain_text("short")
    assert "trace=" in page.url
    assert "<script>" not in page.inner_text("#left"), "harmful text is not there until it is asked for"
    assert "harmful prompt" in page.inner_text("#rows li >> nth=0")
    assert "harm question" not in page.content(), "nor in the document, for find-in-page or a screen reader"
    page.keyboard.press("j")
    expect(page.locator("#rows li >> nth=1")).to_have_attribute("aria-current", "true")
    settled(page)
    page.reload()
    expect(page.locator("#count")).to_contain_text("of 12")
    expect(page.locator("#rows li >> nth=1")).to_have_attribute("aria-current", "true")
    page.close()
    page, others = opened(chromium, served.url + "#arm=raw&versus=improved", viewport={"width": 1280, "height": 800})
    trouble += others
    expect(page.locator("#count")).to_contain_text("of")
    total = int(page.inner_text("#count").rpartition(" of ")[2].split(";")[0])
    assert 0 < total <= 24, "harmful prompts that raw serves and improved does not"
    page.close()
    page, more = opened(chromium, served.url + "#order=random", viewport={"width": 1280, "height": 800})
    settled(page)
    page.uncheck("#blind")
    first = page.locator("#rows li:nth-child(-n+8)")
    for label in ("full compliance", "full refusal", "correct", "wrong"):
        expect(first.filter(has_text=label).first).to_be_attached()  # a judge without probabilities: verdicts in turn
    trouble += more
    assert trouble == []
    page.close()


@browser_needed
def test_labels_are_given_blind_and_can_be_taken_back(chromium: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    run = make_run(tmp_path / "run", prompts=3, seeds=(0,))
    viewer = Served(run)
    try:
        page, trouble = opened(chromium, viewer.url)
        page.wait_for_selector("#left h2")
        page.fill("#by", "ann")
        page.keyboard.press("Escape")
        expect(page.locator("#left details summary")).to_contain_text("hidden while you label")
        assert not page.locator("#left table").first.is_visible()
        page.keyboard.press("s")
        expect(page.locator("#left button[aria-pressed=true]")).to_have_count(1)
        assert (run / "labels" / "harm.jsonl").read_text().count("\n") == 1
        expect(page.locator("#rows li >> nth=0")).to_contain_text("✎")
        page.keyboard.press("?")
        expect(page.locator("#agreement")).to_contain_text("harm: 1 label by 1 person;")
        expect(page.locator("#agreement")).to_contain_text(
            f"demur calibrate guard --detector NAME=MODEL --data {run}/labels/harm.jsonl"
        )
        assert [row.gold for row in calibrate.read(run / "labels" / "harm.jsonl")] == ["safe"]
        page.keyboard.press("Escape")
        page.check("#unlabelled")
        expect(page.locator("#count")).to_contain_text("of 53")
        page.uncheck("#unlabelled")
        expect(page.locator("#count")).to_contain_text("of 54")
        page.click("#left button:has-text('take back')")
        expect(page.locator("#left button[aria-pressed=true]")).to_have_count(0)
        assert (run / "labels" / "harm.jsonl").read_text() == ""
        expect(page.locator("#rows li >> nth=0")).not_to_contain_text("✎")
        assert trouble == []
        page.close()
    finally:
        viewer.stop()


@browser_needed
def test_a_draw_says_before_what_labels_will_tell_and_hides_the_verdicts(chromium: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    run, _ = drawn_from(tmp_path)
    viewer = Served(run)
    try:
        page, trouble = opened(chromium, viewer.url)
        settled(page)
        row = page.locator("#rows li .about").first
        expect(row).to_contain_text("safe")
        page.select_option("#order", "random")
        settled(page)
        expect(page.locator("#draw")).to_contain_text("0–20 % (450), 40–60 % (100), 80–100 % (450)")
        expect(page.locator("#draw")).to_contain_text("100 to ±")
        assert "safe" not in page.inner_text("#rows"), "no verdict in the list"
        assert not page.locator("#left table").first.is_visible(), "none beside the trace"
        page.fill("#by", "ann")
        page.keyboard.press("Escape")
        page.keyboard.press("u")
        page.wait_for_selector("#left button[aria-pressed=true]")
        (label,) = [json.loads(line) for line in (run / "labels" / "harm.jsonl").read_text().splitlines()]
        assert (label["band"], label["of"]) in {("0–20 %", 450), ("40–60 %", 100), ("80–100 %", 450)}
        page.fill("#by", "bob")
        page.keyboard.press("Escape")
        assert "ann" not in page.inner_text("#left"), "a second person does not see the label of the first"
        page.select_option("select[data-kind=verdict]", "unsafe")
        expect(page.locator("#draw")).to_contain_text("No random draw")
        assert trouble == []
        page.close()
    finally:
        viewer.stop()


@browser_needed
@pytest.mark.parametrize("width", [390, 1280])
def test_numbers_of_the_page_lead_to_their_traces(chromium: Any, served: Served, hostile: Path, width: int) -> None:
    from playwright.sync_api import expect

    report.write(hostile)
    page, trouble = opened(chromium, served.url + "report.html", viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in ("comparisons", "patterns", "protocol"):
        for row in page.locator(f"#{section} tbody tr").all():
            assert row.bounding_box()["height"] < 260, "no row is blank for half a screen"
    page.click("nav a[href='#protocol']")
    bar, title = page.locator("nav").bounding_box(), page.locator("#protocol h2").bounding_box()
    assert title["y"] >= bar["y"] + bar["height"] - 1, "the bar does not hide the title it leads to"
    page.click("#every summary")
    rows = page.locator("#every tbody tr:not([hidden])")
    before = rows.count()
    page.fill("#every input.filter", "short seen success")
    assert 0 < rows.count() < before
    page.focus("svg .mark >> nth=0")
    assert page.locator("svg .mark:focus .tip").is_visible()
    page.locator("svg .mark circle").last.hover()
    assert page.locator("svg .mark:hover .tip").first.is_visible()
    assert page.locator("figure").count() == page.locator("figure details.values table").count()
    page.locator("figure details.values summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("figure details.values table").first.is_visible()
    page.locator("#results td a.to").nth(0).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")  # as who goes by keys gets there
    tip = page.evaluate("getComputedStyle(document.activeElement, '::after').content")
    assert "n=12" in tip, "the basis of a number is shown without a mouse"
    page.click("#results td a.to >> nth=0")
    expect(page.locator("#count")).to_contain_text("of")
    assert "arm=raw" in page.url
    assert all(one.startswith(served.url) for one in trouble), trouble
    page.close()


@browser_needed
def test_the_first_table_of_the_demo_fits_a_page_of_1280(chromium: Any, hostile: Path, tmp_path: Path) -> None:
    mini = msgspec.json.decode((ASSETS / "mini_results.json").read_bytes(), type=report.Report)
    (tmp_path / "mini.html").write_text(whole(mini, [hostile]))
    page, _ = opened(chromium, (tmp_path / "mini.html").as_uri(), viewport={"width": 1280, "height": 800})
    wide, room = page.evaluate(
        "(t => [t.scrollWidth, t.parentElement.clientWidth])(document.querySelector('#results table'))"
    )
    assert wide <= room
    page.close()


@browser_needed
def test_a_megabyte_of_text_is_shown_in_parts(chromium: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "large", prompts=2, seeds=(0,), text="word " * 200_000)
    viewer = Served(run)
    try:
        page, trouble = opened(chromium, viewer.url)
        page.wait_for_selector("#left .text")
        page.click("text=characters more")
        page.wait_for_selector("text=characters more", state="detached")
        assert len(page.text_content("#left .thinking")) >= 1_000_000
        assert trouble == []
        page.close()
    finally:
        viewer.stop()
    assert report.write(run)["html"].stat().st_size < 2_000_000


def test_no_answer_without_the_token(served: Served) -> None:
    host = served.url.split("/")[2]
    token = served.url.split("/")[3]
    assert served.status()[0] == 200
    wrong = Served.__new__(Served)
    for url in (
        f"http://{host}/",
        f"http://{host}/api/traces",
        f"http://{host}/{token[:-1]}{'y' if token[-1] == 'x' else 'x'}/",
        f"http://{host}/{token}x/",
    ):
        wrong.url = url
        assert wrong.status() == (403, b"")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_no_answer_for_a_foreign_host_or_origin(served: Served, headers: dict[str, str]) -> None:
    assert served.status("api/traces", headers=headers) == (403, b"")


def test_labels_come_from_the_page_alone(served: Served) -> None:
    body = json.dumps({"kind": "harm", "value": "safe", "by": "eve"}).encode()
    assert served.status("api/label/1", data=body, headers={"Content-Type": "application/json"})[0] == 403
    origin = {"Origin": "/".join(served.url.split("/")[:3])}
    assert served.status("api/label/1", data=body, headers={"Content-Type": "text/plain", **origin})[0] == 403
    good = {"Content-Type": "application/json", **origin}
    assert served.status("api/label/1", data=body, headers=good)[0] == 200
    for bad in (
        {"kind": "harm", "value": "nice", "by": "eve"},
        {"kind": "x", "value": "safe", "by": "eve"},
        {"kind": "harm"},
        [1],
    ):
        status, answer = served.status("api/label/1", data=json.dumps(bad).encode(), headers=good)
        assert status == 400
        assert "error" in json.loads(answer)
    assert served.status("api/label/1", data=b"[" * 100_000, headers=good)[0] == 400
    odd = b'{"kind": "harm", "value": "safe", "by": "\\ud800"}'
    assert served.status("api/label/1", data=odd, headers=good)[0] == 200
    assert served.status("api/trace/1")[0] == 200, "a label by half a character does not close the trace"
    assert served.status(f"api/traces?offset={10**30}")[0] == 400


@pytest.mark.parametrize("query", ['"', "AND", "a OR", "(", "NEAR(", "x:y", "*", "' or 1=1 --", "\x00", "%00"])
def test_any_search_is_harmless(served: Served, query: str) -> None:
    from urllib.parse import quote

    assert served.status(f"api/traces?q={quote(query)}")[0] == 200
    assert served.status("api/traces?offset=-5&limit=100000")[0] == 200
    assert served.status("api/trace/999999999")[0] == 404
    assert served.status("../../etc/passwd")[0] in (403, 404)


def test_the_index_finds_and_filters(hostile: Path) -> None:
    index = Index(hostile)
    assert index.progress() == 0
    index.fill()
    assert index.progress() == 1
    everything = index.search({})
    last = index.search({}, offset=200, limit=50)["rows"][7]
    found = index.search({"trace": last["id"]}, limit=50)
    assert (found["offset"], found["rows"][found["at"]]["id"]) == (200, last["id"]), "the page that holds a trace"
    assert everything["total"] == 216
    assert index.search({"verdict": "correct"})["total"] + index.search({"verdict": "wrong"})["total"] == 48
    assert index.search({"q": "Pretend question 11"})["total"] == 4
    attacked = index.search({"arm": "raw", "attack": "mini-seen"})["rows"][3]
    others = [index.trace(sibling["row"]) for sibling in index.siblings(attacked["row"])]
    parent = index.trace(attacked["row"]).prompt.parent  # type: ignore[union-attr]
    assert parent
    assert [other.prompt.parent for other in others if other] == [parent] * 3, (
        "attacked variants of one question, arm by arm"
    )
    against = {"harmful": {"full_compliance"}, "benign": {"full_refusal", "partial_refusal"}, "maths": {"wrong"}}
    failed: dict[str, dict[tuple[str, ...], bool]] = {}
    for e in read(hostile).evaluations:
        for row in e.rows:
            labels = {judged.label for judged in row.verdicts.values()}
            failed.setdefault(e.arm, {})[e.bench, e.attack, row.question] = bool(labels & against[row.intent])
    one_alone = [at for at, bad in failed["raw"].items() if bad and not failed["improved"][at]]
    assert index.search({"arm": "raw", "versus": "improved"})["total"] == len(one_alone) > 10
    patterned = index.search({"pattern": "inconsistency", "arm": "teacher: default"})
    row = patterned["rows"][0]["row"]
    trace = index.trace(row)
    assert trace is not None
    _, findings = index.notes(trace.id)
    assert any(f.pattern == "inconsistency" and f.present for f in findings)


def drawn_from(folder: Path) -> tuple[Path, dict[str, HarmLabel]]:
    """A run with a guard that is sure and right of 900 replies, and of 100 neither; and what people would say of each."""
    traces, verdicts, gold = [], [], dict[str, HarmLabel]()
    for number, prompt in enumerate(prompts_of("h", "harmful", 1_000)):
        trace = trace_of(prompt)
        chance = 0.05 if number < 450 else 0.95 if number < 900 else 0.45
        traces.append(trace)
        verdicts.append(
            Verdict(
                trace=trace.id, judge="guard", query="question", part="answer",
                label="unsafe" if chance > 0.5 else "safe", score=chance,
            )
        )  # fmt: skip
        gold[trace.id] = "unsafe" if number >= 450 and (number < 900 or number % 2) else "safe"
    settings = {"arm": "target", "seed": None, "bench": {"name": "advbench"}}
    publish(folder, "evaluate-t", "evaluate", {"traces": traces, "verdicts": verdicts}, settings=settings)
    return folder, gold


def test_a_draw_takes_the_bands_in_turn_and_its_labels_stand_for_their_bands(tmp_path: Path) -> None:
    """Each third of the labels is of one band, the uncertain one among them, which is a tenth of the replies."""
    run, gold = drawn_from(tmp_path)
    index, labels, asked = Index(run), Labels(run), {"order": "random", "bench": "advbench"}
    assert {s.band: s.size for s in index.strata(asked)} == {"0–20 %": 450, "40–60 %": 100, "80–100 %": 450}
    assert index.strata(asked | {"verdict": "safe"}) == [], "a filter by what is to be found out is no draw"
    assert index.strata({"bench": "advbench"}) == []
    before = worth.widths(index.strata(asked), (6, 90, 900))
    assert (before[6] or 1) > (before[90] or 1) > (before[900] or 1) > 0
    for row in index.search(asked, limit=90)["rows"]:
        trace = index.trace(row["row"])
        assert trace
        ((band, size, *_),) = index.strata(asked, row=row["row"])
        labels.put(
            trace, kind="harm", value=gold[trace.id], by="ann", verdicts=index.notes(trace.id)[0], drawn=(band, size)
        )
    rows = [json.loads(line) for line in (run / "labels" / "harm.jsonl").read_text().splitlines()]
    assert Counter((row["band"], row["of"]) for row in rows) == {("0–20 %", 450): 30, ("40–60 %", 100): 30, ("80–100 %", 450): 30}  # fmt: skip
    plain = [row["guard_label"] == "unsafe" for row in rows if row["label"] == "unsafe"]
    assert sum(plain) / len(plain) < 0.75, "taken as they come they would halve the judge's sensitivity"
    (one,) = report.build(run).corrected
    assert one.sensitivity.value == pytest.approx(0.9, abs=0.03)
    assert one.observed.value == 0.45
    assert one.corrected.value == pytest.approx(0.5, abs=0.02)
    assert one.corrected.how == "from 90 labels over 3 strata of 1000"
    assert (one.corrected.high or 0) - (one.corrected.low or 0) == pytest.approx(2 * (before[90] or 0), rel=0.2)


def test_two_people_label_and_agree_to_a_degree(tmp_path: Path) -> None:
    labels = Labels(tmp_path)
    traces = [trace_of(Prompt(text=f"q{i}", intent="harmful"), answer=f"a{i}") for i in range(6)]
    for number, trace in enumerate(traces):
        labels.put(trace, kind="refusal", value="full_refusal" if number < 3 else "full_compliance", by="ann")
        labels.put(trace, kind="refusal", value="full_refusal" if number < 4 else "full_compliance", by="bob")
    labels.put(traces[0], kind="patterns", value=[], by="ann")
    pair = Labels(tmp_path).agreement()["refusal"]["pairs"][0]
    assert pair["n"] == 6
    assert pair["kappa"] == pytest.approx(2 / 3)
    labels.put(traces[0], kind="refusal", value=None, by="bob")
    assert Labels(tmp_path).of(traces[0].id) == {"refusal": {"ann": "full_refusal"}, "patterns": {"ann": []}}
    with pytest.raises(UserError, match="no label"):
        labels.put(traces[0], kind="harm", value="garbled", by="ann")


def test_findings_cut_text_into_pieces() -> None:
    text = "one two three"
    marks = [
        ("a", Span(part="thinking", start=4, end=7, text="two")),
        ("b", Span(part="thinking", start=4, end=13, text="two three")),
    ]
    cut = pieces(text, marks)
    assert [(p.text, p.names) for p in cut] == [("one ", ()), ("two", ("a", "b")), (" three", ("b",))]
    assert "".join(p.text for p in pieces(text, [("c", Span(part="thinking", start=9, end=99, text=""))])) == text
    assert "".join(p.text for p in pieces(text, marks, limit=5)) == "one t"
    assert pieces("", marks) == []
    assert visible("a\x00\x1b\u202eb\n") == "a␀␛⟨U+202E⟩b\n"


def test_two_viewers_do_not_lose_each_others_labels(tmp_path: Path) -> None:
    one, two = Labels(tmp_path), Labels(tmp_path)
    traces = [trace_of(Prompt(text=f"q{i}", intent="harmful")) for i in range(2)]
    one.put(traces[0], kind="harm", value="safe", by="ann")
    two.put(traces[1], kind="harm", value="unsafe", by="bob")
    one.put(traces[0], kind="harm", value="unsafe", by="ann")
    assert len((tmp_path / "labels" / "harm.jsonl").read_text().splitlines()) == 2
