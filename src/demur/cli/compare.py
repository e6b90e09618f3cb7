"""`demur compare A B`: compare two arms by paired tests."""

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
    """Compare two arms on the prompts that both answered: differences with intervals, p after Holm, the verdict in words."""
    claims = compared(a, b, margin=margin)
    if flags.json:
        rows = [plain(claim) | {"winner": claim.winner, "words": format.verdict(claim)} for claim in claims]
        common.print_json({"a": claims[0].a, "b": claims[0].b, "comparisons": rows})
        return
    common.stdout.print(comparison(claims))
    estimates = [(c, *arm) for c in claims for arm in ((c.a, c.estimate_a), (c.b, c.estimate_b))]
    for line in doubts((arm, (c.bench, c.attack[0], c.metric), estimate) for c, arm, estimate in estimates):
        common.stdout.print(line)
    stages = [stage for text in (a, b) for stage in present(side(text).run)]
    for judge, note in notes((claim.judge for claim in claims), stages).items():
        common.stdout.print(f"{judge}: {note}", markup=False)
