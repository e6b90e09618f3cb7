"""`demur bench list` and `demur bench show`: the benchmarks, their protocols and their local copies."""

import msgspec

from demur.bench import get_bench, left_out, names
from demur.bench.load import local
from demur.cli import common

ASKED = {  # Headings of the list, by whether a benchmark measures (attack success, over-refusal)
    (True, False): "harmful requests: are they declined?",
    (False, True): "harmless requests: are they answered?",
    (True, True): "both: does the model distinguish them?",
    (False, False): "problems: are they solved?",
}


@common.verb("data_dir json", name="list")
def show_all(flags: common.Flags) -> None:
    """List all benchmarks by what they ask and, with --data-dir, the local copies found there."""
    benches = {name: get_bench(name) for name in names()}
    copies = {name: path.name if (path := local(bench, flags.data_dir)) else None for name, bench in benches.items()}
    if flags.json:
        rows = [{"bench": bench, "here": copies[name]} for name, bench in benches.items()]
        common.print_json({"benches": rows, "left_out": left_out()})
        return
    groups: dict[str, list[tuple[str, ...]]] = {asked: [] for asked in ASKED.values()}
    for name, bench in benches.items():
        if "@" not in name:
            count = "any" if bench.count is None else f"{bench.count:,}"
            copy = (copies[name] or "–",) if flags.data_dir else ()
            headlines = {metric.name for metric in bench.metrics if metric.headline}
            group = groups[ASKED["attack_success" in headlines, "over_refusal" in headlines]]
            group.append((name, count, *copy, bench.about))
    titles = ("benchmark", "#prompts", *(("local copy",) if flags.data_dir else ()), "about")
    for asked, group in groups.items():
        common.show(titles, group, name=asked)
    common.stdout.print(f"left out, for reasons that `demur bench show NAME` gives: {', '.join(left_out())}")


@common.verb("json")
def show(name: str, flags: common.Flags) -> None:
    """Show the protocol of one benchmark: source, sampling, judge, judged part, metrics, version."""
    bench = get_bench(name)
    if flags.json:
        common.print_json(bench)
        return
    verified = "columns" if bench.columns else "–"  # What `demur check bench` can verify of a copy
    if bench.count is not None:
        verified = "texts, count" if bench.sha256 else "count"
    for key, value in (msgspec.to_builtins(bench) | {"verified": verified}).items():
        if key != "metrics":
            common.stdout.print(f"{key:11} {_plain(value)}", soft_wrap=True)
    for metric in bench.metrics:
        prompts = f" of {' and '.join(metric.intents)} prompts" if metric.intents else ""
        better = "" if metric.better == "neither" else f"; {metric.better} is better"
        common.stdout.print(f"metric      {metric.name}: {' or '.join(metric.labels)}{prompts}{better}", soft_wrap=True)


def _plain(value: object) -> str:
    """A value without Python's brackets."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) or "(empty)" for entry in value)
    return str(value)
