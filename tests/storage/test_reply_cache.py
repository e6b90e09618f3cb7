"""The reply cache: nothing is asked twice, nothing that was kept is lost, damage is detected."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import WorkError
from demur.storage.reply_cache import FILE, Reply, ReplyCache, key_of


def keyed(count: int, *, size: int = 40) -> list[tuple[bytes, Reply]]:
    return [(key_of(i), Reply(content=f"{i} " * size, tokens_in=1, tokens_out=size)) for i in range(count)]


def fill(folder: Path, pairs: list[tuple[bytes, Reply]], *, label: str = "target/x") -> None:
    with ReplyCache(folder) as cache:
        asyncio.run(cache.put(pairs, label=label))


def test_a_reply_survives_and_is_not_asked_again(tmp_path: Path) -> None:
    asked = 0

    async def ask() -> Reply:
        nonlocal asked
        asked += 1
        return Reply(content="é\u2028\U0001f600\x00", notes=("n",))

    for _ in range(2):
        with ReplyCache(tmp_path) as cache:
            reply = asyncio.run(cache.once(key_of("q"), ask))
            assert reply == Reply(content="é\u2028\U0001f600\x00", notes=("n",))
    assert asked == 1


def test_identical_requests_are_asked_once_at_the_same_time(tmp_path: Path) -> None:
    asked = 0

    async def ask() -> Reply:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        return Reply(content="one")

    async def main() -> list[Reply]:
        return await asyncio.gather(*(cache.once(key_of("q"), ask) for _ in range(50)))

    with ReplyCache(tmp_path) as cache:
        assert {reply.content for reply in asyncio.run(main())} == {"one"}
    assert asked == 1


def test_the_next_in_line_asks_when_the_first_is_cancelled_or_fails(tmp_path: Path) -> None:
    started: list[str] = []

    async def main() -> None:
        async def ask(name: str) -> Reply:
            started.append(name)
            if name == "failing":
                raise ValueError(name)
            await asyncio.sleep(0.02)
            return Reply(content=name)

        first = asyncio.create_task(cache.once(key_of("q"), lambda: ask("first")))
        await asyncio.sleep(0.005)
        second = asyncio.create_task(cache.once(key_of("q"), lambda: ask("failing")))
        third = asyncio.create_task(cache.once(key_of("q"), lambda: ask("third")))
        await asyncio.sleep(0.005)
        first.cancel()
        results = await asyncio.gather(first, second, third, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert isinstance(results[1], ValueError)
        assert isinstance(results[2], Reply)
        assert results[2].content == "third"

    with ReplyCache(tmp_path) as cache:
        asyncio.run(main())
    assert started == ["first", "failing", "third"]


CHILD = textwrap.dedent("""
    import asyncio, sys, pathlib
    from demur.storage.reply_cache import ReplyCache, Reply, key_of
    folder, log, name = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]

    async def ask(i):
        with log.open("a") as file:
            file.write(f"{i}\\n")
        await asyncio.sleep(0.01)
        return Reply(content=f"{name} {i}")

    async def main():
        with ReplyCache(folder) as cache:
            found = await asyncio.gather(*(cache.once(key_of(i), lambda i=i: ask(i)) for i in range(40)))
        print("|".join(reply.content for reply in found))

    asyncio.run(main())
""")


def test_several_processes_ask_once_and_agree(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    command = [sys.executable, "-c", CHILD, str(tmp_path / "cache"), str(log)]
    children = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "abc"]
    printed = {child.communicate(timeout=60)[0] for child in children}
    assert len(printed) == 1
    assert sorted(map(int, log.read_text().split())) == list(range(40))


def test_failures_are_rows_that_can_be_forgotten(tmp_path: Path) -> None:
    pairs = [*keyed(3), (key_of("bad"), Reply(failure="timeout", detail="60 s"))]
    fill(tmp_path, pairs)
    with ReplyCache(tmp_path) as cache:
        assert cache.failures() == {"timeout": 1}
        found = cache.get(key_of("bad"))
        assert found is not None
        assert found.failure == "timeout"
        assert cache.forget_failures() == 1
        assert cache.get(key_of("bad")) is None
        assert cache.count() == 3


def test_the_ledger_sums_up_by_part_and_stage_and_survives(tmp_path: Path) -> None:
    fill(
        tmp_path,
        [(key_of("one"), Reply(tokens_in=10, tokens_out=5, tokens_thinking=2, cost=0.5, retries=1))],
        label="judge/x",
    )
    fill(
        tmp_path,
        [(key_of("two"), Reply(tokens_in=1, cost=0.25)), (key_of("three"), Reply(failure="timeout"))],
        label="judge/x",
    )
    fill(tmp_path, keyed(2), label="target/y")
    with ReplyCache(tmp_path) as cache:
        judge, target = cache.ledger()
    assert (judge.part, judge.stage, judge.requests, judge.failed, judge.retries) == ("judge", "x", 3, 1, 1)
    assert (judge.tokens_in, judge.tokens_out, judge.tokens_thinking, judge.cost) == (11, 5, 2, 0.75)
    assert (target.requests, target.tokens_out, target.cost) == (2, 80, None)


def test_the_first_of_two_replies_is_the_one(tmp_path: Path) -> None:
    with ReplyCache(tmp_path) as one, ReplyCache(tmp_path) as two:
        asyncio.run(one.put([(key_of(1), Reply(content="first"))]))
        (seen,) = asyncio.run(two.put([(key_of(1), Reply(content="second"))]))
    assert seen.content == "first"


def test_merging_takes_in_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path / "a", keyed(10))
    fill(tmp_path / "b", keyed(15))
    with ReplyCache(tmp_path / "a") as cache:
        assert cache.merge(tmp_path / "b") == 5
        assert cache.merge(tmp_path / "b") == 0
        assert all(cache.get(key) == reply for key, reply in keyed(15))


def test_a_fresh_reply_takes_the_place_of_the_stored_one_and_what_was_spent_adds_up(tmp_path: Path) -> None:
    texts = iter(["babble", "no verdict", "unsafe"])

    async def ask() -> Reply:
        return Reply(content=next(texts), tokens_out=5, cost=0.5)

    async def main(cache: ReplyCache) -> list[str | None]:
        first = await cache.once(key_of("q"), ask, label="judge/x")
        stored = await cache.once(key_of("q"), ask, label="judge/x")
        again = await cache.once(key_of("q"), ask, label="judge/x", fresh=True)
        at_once = await asyncio.gather(*(cache.once(key_of("q"), ask, fresh=fresh) for fresh in (True, False)))
        return [reply.content for reply in (first, stored, again, *at_once)]

    with ReplyCache(tmp_path) as cache:
        assert asyncio.run(main(cache)) == ["babble", "babble", "no verdict", "unsafe", "unsafe"]
        (line,) = cache.ledger()
    assert (line.requests, line.retries, line.tokens_out, line.cost) == (1, 2, 15, 1.5)


def damaged(folder: Path, *spans: tuple[int, int]) -> None:
    path = folder / FILE
    data = bytearray(path.read_bytes())
    for start, end in spans:
        data[start:end] = os.urandom(len(data[start:end]))
    path.write_bytes(data)


def rebuilds(caplog: pytest.LogCaptureFixture) -> list[tuple[int, int]]:
    """How many replies could be read, and how many not, each time that a damaged file was rebuilt."""
    found = re.findall(r"(\d+) replies could be read and are used, (\d+) could not", caplog.text)
    return [(int(used), int(lost)) for used, lost in found]


KILLED = """
import asyncio, os, sys, pathlib
from demur.storage.reply_cache import *
cache = ReplyCache(pathlib.Path(sys.argv[1]))
for i in range(20):
    asyncio.run(cache.put([(key_of(i), Reply(content=str(i) * 500))]))
os.kill(os.getpid(), 9)
"""
"""Twenty commits, of which all but the first few are in the log when it is killed."""


@pytest.mark.parametrize(
    ("spans", "fewest"),
    [
        ([(0, 1)], 400),
        ([(16, 18)], 400),
        ([(0, 4096)], 400),
        ([(4096, 8192)], 390),
        ([(4096, 4160)], 390),
        ([(200_000, 212_288)], 300),
        ([(100_000, 100_001), (150_000, 150_001), (200_000, 200_001)], 390),
    ],
)
def test_a_damaged_file_gives_what_can_be_read_and_the_rest_is_asked_again(
    tmp_path: Path, spans: list[tuple[int, int]], fewest: int, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = keyed(400, size=400)
    fill(tmp_path, pairs)
    damaged(tmp_path, *spans)
    asked = 0

    async def again(cache: ReplyCache) -> list[Reply]:
        async def ask(reply: Reply) -> Reply:
            nonlocal asked
            asked += 1
            return reply

        return [await cache.once(key, functools.partial(ask, reply)) for key, reply in pairs]

    for _ in range(2):
        # Where the damage is met in the middle of the work, that ends, and the next start rebuilds the file.
        with suppress(WorkError), ReplyCache(tmp_path) as cache:
            asyncio.run(again(cache))
    with ReplyCache(tmp_path) as cache:
        assert asyncio.run(again(cache)) == [reply for _, reply in pairs]
    assert asked <= 400 - fewest
    assert any("damaged" in record.getMessage() for record in caplog.records)
    for used, lost in rebuilds(caplog):
        assert used + lost == 400
        assert lost <= 400 - fewest
    with ReplyCache(tmp_path) as cache:
        assert cache.count() == 400


def test_replies_over_many_pages_and_in_the_log_are_read_from_a_damaged_file(tmp_path: Path) -> None:
    script = "import asyncio, os, sys, pathlib\nfrom demur.storage.reply_cache import *\nj = ReplyCache(pathlib.Path(sys.argv[1]))\n"
    script += (
        "for i in range(30): asyncio.run(j.put([(key_of(i), Reply(content=str(i) * 9000))]))\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
    assert (tmp_path / f"{FILE}-wal").stat().st_size > 300_000
    damaged(tmp_path, (0, 100))
    with ReplyCache(tmp_path) as cache:
        assert [cache.get(key_of(i)) for i in range(30)] == [Reply(content=str(i) * 9000) for i in range(30)]


def test_a_flipped_byte_in_a_reply_is_detected_and_only_that_reply_is_lost(tmp_path: Path) -> None:
    fill(tmp_path, keyed(3))
    path = tmp_path / FILE
    data = path.read_bytes()
    assert data.count(b"1 1 1 1") >= 1
    path.write_bytes(data.replace(b"1 1 1 1", b"1 7 1 1", 1))
    with ReplyCache(tmp_path) as cache:
        assert cache.get(key_of(1)) is None
        assert cache.count() == 2


def test_a_damaged_file_that_another_process_uses_is_left_to_it(tmp_path: Path) -> None:
    fill(tmp_path, keyed(3))
    with ReplyCache(tmp_path):
        (tmp_path / "damaged").touch()
        with pytest.raises(WorkError, match="another process uses it"):
            ReplyCache(tmp_path)
    with ReplyCache(tmp_path) as cache:
        assert cache.count() == 3


def test_whatever_goes_wrong_in_the_writer_reaches_those_who_wait(tmp_path: Path) -> None:
    with ReplyCache(tmp_path) as cache:
        with pytest.raises(WorkError, match="OverflowError"):
            asyncio.run(asyncio.wait_for(cache.put([(key_of(1), Reply(tokens_out=2**64 - 1))]), 5))
        asyncio.run(asyncio.wait_for(cache.put(keyed(2)), 5))
        assert cache.count() == 2


def test_a_log_that_was_cut_short_is_noticed_and_what_is_lost_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut, or a copy that was cut off: SQLite takes the log for one that ended there."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    log = tmp_path / f"{FILE}-wal"
    log.write_bytes(log.read_bytes()[: int(log.stat().st_size * 0.6)])
    for _ in range(2):
        with ReplyCache(tmp_path) as cache:
            there = [cache.get(key_of(i)) is not None for i in range(20)]
        assert 5 < sum(there) < 20
        assert there == sorted(there, reverse=True)
        assert rebuilds(caplog) == [(sum(there), 20 - sum(there))], "logged once"


DYING = """
import os, pathlib, sys
from demur.storage.reply_cache import ReplyCache
left = int(sys.argv[2])

def watch(event, args):
    global left
    if event in ("os.rename", "os.mkdir", "sqlite3.connect", "os.remove"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(watch)
ReplyCache(pathlib.Path(sys.argv[1])).close()
"""


@pytest.mark.slow
def test_killed_while_a_damaged_file_is_rebuilt_it_loses_nothing_that_could_be_read(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, "-c", KILLED, str(whole)], timeout=60, check=False)
    log = whole / f"{FILE}-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 3] ^= 0xFF
    log.write_bytes(data)
    for step in range(20):
        folder = tmp_path / str(step)
        shutil.copytree(whole, folder)
        ended = subprocess.run([sys.executable, "-c", DYING, str(folder), str(step)], timeout=60, check=False)
        with ReplyCache(folder) as cache:
            assert cache.count() >= 19, step
        if ended.returncode == 0:
            break
    assert step > 8, "as many events as a rebuilding has"


def test_what_was_deleted_or_comes_from_an_older_cache_is_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, [*keyed(5), (key_of("bad"), Reply(failure="timeout"))])
    with ReplyCache(tmp_path) as cache:
        assert cache.forget_failures() == 1
    with ReplyCache(tmp_path) as cache:
        assert cache.count() == 5
    old = sqlite3.connect(tmp_path / FILE)  # as demur made it when it did not count
    old.executescript("DROP TABLE counted; DROP TRIGGER more; DROP TRIGGER fewer;")
    old.close()
    (tmp_path / "claims.lock").write_bytes(b"")
    for _ in range(2):
        fill(tmp_path, keyed(7))
        with ReplyCache(tmp_path) as cache:
            assert cache.count() == 7
    assert not caplog.text
    (tmp_path / FILE).unlink()
    with ReplyCache(tmp_path) as cache:
        assert cache.count() == 0
    assert rebuilds(caplog) == [(0, 7)]


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("CREATE TABLE notes(text)")
    connection.close()
    with pytest.raises(WorkError, match="not a reply cache of demur"):
        ReplyCache(tmp_path)


def test_a_full_disk_is_an_error_that_leaves_good_rows(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        written = 0

        async def until_full(cache: ReplyCache) -> None:
            nonlocal written
            for i in range(200):
                await cache.put([(key_of(i), Reply(content=os.urandom(10_000).hex()))])
                written += 1

        with ReplyCache(mounted) as cache, pytest.raises(WorkError, match=r"disk is full.*Make room"):
            asyncio.run(until_full(cache))
        assert 5 < written < 100
        subprocess.run(["mount", "-o", "remount,size=8m", str(mounted)], check=True)
        with ReplyCache(mounted) as cache:
            assert [cache.get(key_of(i)) is not None for i in range(written)] == [True] * written
            assert cache.get(key_of(written)) is None
            asyncio.run(cache.put([(key_of("more"), Reply(content="room"))]))
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_closed_temporary_cache_leaves_nothing(tmp_path: Path) -> None:
    cache = ReplyCache(None)
    folder = cache.folder
    asyncio.run(cache.put(keyed(2)))
    assert cache.count() == 2
    cache.close()
    cache.close()
    assert not folder.exists()


requests = st.fixed_dictionaries(
    {"messages": st.lists(st.text(max_size=20), max_size=3), "temperature": st.floats(0, 2), "seed": st.integers(0, 9)}
)


@given(requests, requests)
def test_the_key_is_the_request(one: dict[str, object], two: dict[str, object]) -> None:
    assert (key_of(one) == key_of(two)) == (one == two)
    assert key_of(one) == key_of(dict(reversed(one.items())))


def test_processes_that_make_a_cache_at_once_all_open_it(tmp_path: Path) -> None:
    code = "import sys; from demur.storage.reply_cache import ReplyCache\nfor i in range(40):\n    ReplyCache(f'{sys.argv[1]}/{i}').close()"
    opened = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1].decode() for process in opened] == [""] * 4


@pytest.mark.parametrize("at", [0.02, 0.3, 0.7])
def test_a_damaged_log_is_noticed_and_what_can_be_read_is_used(
    tmp_path: Path, at: float, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite reads a write-ahead log up to the first damaged frame, and says nothing."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    log = tmp_path / f"{FILE}-wal"
    data = bytearray(log.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    log.write_bytes(data)
    with ReplyCache(tmp_path) as cache:
        assert sum(cache.get(key_of(i)) is not None for i in range(20)) >= 18
        there = cache.count()
    assert rebuilds(caplog) == [(there, 20 - there)]
    caplog.clear()
    with ReplyCache(tmp_path) as cache:
        assert cache.count() >= 18
    assert not caplog.text


def test_an_intact_log_is_not_taken_for_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed in the middle, also after the log was begun again from its start."""
    script = "import asyncio, os, sys, pathlib\nfrom demur.storage.reply_cache import *\nj = ReplyCache(pathlib.Path(sys.argv[1]))\n"
    script += (
        "for i in range(12):\n    asyncio.run(j.put([(key_of((i, int(sys.argv[2]))), Reply(content=str(i) * 500))]))\n"
    )
    script += (
        "    if i == int(sys.argv[2]): j._commits.execute('PRAGMA wal_checkpoint(RESTART)')\nos.kill(os.getpid(), 9)"
    )
    for restart in range(0, 12, 3):
        subprocess.run([sys.executable, "-c", script, str(tmp_path), str(restart)], timeout=60, check=False)
    with ReplyCache(tmp_path) as cache:
        assert cache.count() == 48
    assert not caplog.text
