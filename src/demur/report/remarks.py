"""What has to be known beside numbers: arms that do not speak coherently, what servers do, requests without a reply."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec.structs import replace

from demur.records import Estimate
from demur.report.metrics import Cells, Column
from demur.report.read import Evaluation
from demur.report.tests import PairedTest

ALIKE = 0.95  # From this share of prompts on whose samples are all the same, a server's samples do not differ
GARBLED = 0.10  # Above this share of garbled replies an arm does not speak coherently, and its refusals mean little


def incoherent(found: Cells) -> dict[str, Estimate]:
    """Arms that are garbled too often, with the worst of their rates."""
    worst: dict[str, Estimate] = {}
    for arm, own in found.items():
        rates = [cell.estimate(c) for c, cell in own.items() if (c.part, c.metric) == ("answer", "garbled")]
        rate = max(rates, key=lambda e: e.value or 0, default=None)
        if rate is not None and (rate.value or 0) > GARBLED:
            worst[arm] = rate
    return worst


def doubted(tests: Iterable[PairedTest], broken: Mapping[str, Estimate]) -> Iterator[PairedTest]:
    """Comparisons that say of an arm that it is garbled."""
    said = {arm: f"{arm} is garbled in {100 * (e.value or 0):.0f} % of replies" for arm, e in broken.items()}
    for test in tests:
        yield replace(test, split="; ".join(filter(None, (test.split, said.get(test.a), said.get(test.b)))))


def remarks(evaluations: Iterable[Evaluation], columns: Collection[Column]) -> Iterator[str]:
    """What is said of servers (all samples of a prompt are the same, a hidden template opens the thinking), and of judges without a column."""
    shown = {(c.bench, c.judge, c.part) for c in columns}
    for e in evaluations:
        for judge, part in e.judges:
            if part == e.judges[0][1] and (e.bench, judge, part) not in shown:
                yield f"{judge} ({part}) read {e.bench} and has no column: its labels do not tell apart what the columns count"
        at = f"{e.arm}, {e.bench}" + ("" if e.attack == "none" else f" under {e.attack}")
        texts: dict[str, list[int]] = {}
        for row in e.rows:
            if row.text:
                texts.setdefault(row.prompt, []).append(row.text)
        if gone := Counter(row.lost for row in e.rows if row.outcome is None and row.lost):
            why = ", ".join(f"{count:,} {kind}" for kind, count in gone.items())
            yield f"{at}: {gone.total():,} of {len(e.rows):,} requests got no reply, and are unscored: {why}"
        several = [own for own in texts.values() if len(own) > 1]
        if several and sum(len(set(own)) == 1 for own in several) >= ALIKE * len(several):
            yield f"{at}: this server's samples do not differ; the replies to a prompt count once"
        if again := e.stage and e.stage.manifest.summary.get("filed_again"):
            yield f"{at}: replies filed again as cut in the thinking, since the server's template opens it: {again:,}"
