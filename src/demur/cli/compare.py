"""`demur compare A B`: two arms by paired tests."""

from typing import Annotated

from demur.cli import common
from demur.report import format
from demur.report.compare import compare as compared
from demur.report.compare import side
from demur.report.data import plain
from demur.report.first import doubts
from demur.report.labels import notes
from demur.report.read import present
from demur.report.sections import comparison


@common.verb("json")
def compare(
    a: str, b: str, flags: common.Flags, margin: Annotated[float | None, common.flag("margin", min=0, max=1)] = None
) -> None:
    """Two arms on the same prompts: differences with intervals, p after Holm, the verdict in words, prompts needed."""
    claims = compared(a, b, margin=margin)
    if flags.json:
        rows = [plain(claim) | {"winner": claim.winner, "words": format.verdict(claim)} for claim in claims]
        common.print_json({"a": claims[0].a, "b": claims[0].b, "comparisons": rows})
        return
    common.stdout.print(comparison(claims))
    both = [(t, *side) for t in claims for side in ((t.a, t.estimate_a), (t.b, t.estimate_b))]
    for line in doubts((arm, (t.bench, t.attack[0], t.metric), e) for t, arm, e in both):
        common.stdout.print(line)
    stages = [stage for text in (a, b) for stage in present(side(text).run)]
    for judge, worth in notes((claim.judge for claim in claims), stages).items():
        common.stdout.print(f"{judge}: {worth}", markup=False)
