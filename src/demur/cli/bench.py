"""`demur bench list`: what benchmarks there are, and which of them lie here."""

import msgspec

from demur.bench import get_bench, left_out, names
from demur.bench.load import local
from demur.cli import common

ASKED = {  # Groups of the list, by whether attack success and over-refusal are counted
    (True, False): "harmful requests: are they declined?",
    (False, True): "harmless requests: are they answered?",
    (True, True): "both: are they told apart?",
    (False, False): "problems: are they solved?",
}


@common.verb("data_dir json", name="list")
def show_all(flags: common.Flags) -> None:
    """All benchmarks by what they ask; with --data-dir, which copy is there. `demur bench show NAME` tells the rest."""
    found = {name: get_bench(name) for name in names()}
    here = {name: path.name if (path := local(bench, flags.data_dir)) else None for name, bench in found.items()}
    if flags.json:
        benches = [{"bench": bench, "here": here[name]} for name, bench in found.items()]
        common.print_json({"benches": benches, "left_out": left_out()})
        return
    groups: dict[str, list[tuple[str, ...]]] = {asked: [] for asked in ASKED.values()}
    for name, bench in found.items():
        if "@" not in name:
            count = "any" if bench.count is None else f"{bench.count:,}"
            copy = (here[name] or "–",) if flags.data_dir else ()
            counted = {metric.name for metric in bench.metrics if metric.headline}
            groups[ASKED["attack_success" in counted, "over_refusal" in counted]].append(
                (name, count, *copy, bench.about)
            )
    titles = ("benchmark", "#prompts", *(("here",) if flags.data_dir else ()), "about")
    for asked, rows in groups.items():
        common.show(titles, rows, name=asked)
    common.stdout.print(f"left out, as `demur bench show NAME` explains: {', '.join(left_out())}")


@common.verb("json")
def show(name: str, flags: common.Flags) -> None:
    """One benchmark's whole protocol: source, sampling, judge, query and part, metrics, version."""
    bench = get_bench(name)
    if flags.json:
        common.print_json(bench)
        return
    held = "columns" if bench.columns else "–"  # What `demur check bench` can hold a copy against
    held = held if bench.count is None else "texts, count" if bench.sha256 else "count"
    for key, value in (msgspec.to_builtins(bench) | {"verified": held}).items():
        if key != "metrics":
            common.stdout.print(f"{key:11} {_words(value)}", soft_wrap=True)
    for one in bench.metrics:
        prompts = f" of {' and '.join(one.intents)} prompts" if one.intents else ""
        better = "" if one.better == "neither" else f"; {one.better} is better"
        common.stdout.print(f"metric      {one.name}: {' or '.join(one.labels)}{prompts}{better}", soft_wrap=True)


def _words(value: object) -> str:
    """A value without its brackets."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(own)}" for key, own in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(one) or "(empty)" for one in value)
    return str(value)
