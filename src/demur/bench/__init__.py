"""What is measured. Most benchmarks are a form plus a source and stand in `table.yaml`; others are a file, listed here.

A benchmark is prompts, sampling, judge, query and part, metrics and a version in one record (`spec.Bench`). A name with `@`
is a protocol of its own (`xstest@paper-v2`), one with `=` a benchmark on a file of yours (`harmful=my_prompts`). Loading
its prompts is `load.load_prompts`; numbers of its verdicts are made in `report.metrics`.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from demur.bench.metrics import METRICS
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.registry import resolve
from demur.settings import from_yaml
from demur.storage.readers import READERS

TABLE = Path(__file__).parent / "table.yaml"


@cache
def _data() -> Any:
    return from_yaml(TABLE.read_text(encoding="utf-8"))


def left_out() -> dict[str, str]:
    """Benchmarks that are not here, and why."""
    return dict(_data()["left_out"])


@cache
def _table() -> dict[str, Bench]:
    """The benchmarks of the table and their protocols."""
    data, made = _data(), dict[str, Bench]()
    for name, entry in data["benches"].items():
        own = {key: value for key, value in entry.items() if key not in ("kind", "protocols")}
        plain = _over(data["kinds"][entry["kind"]], own)
        for protocol, changes in {"": {}, **entry.get("protocols", {})}.items():
            full, own = f"{name}@{protocol}".rstrip("@"), _over(plain, changes)
            metrics = [METRICS[metric] for metric in own["metrics"]]
            made[full] = msgspec.convert(own | {"name": full, "metrics": metrics}, Bench)
    return made


def _over(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with changes; options are merged, all else is replaced."""
    options = {**plain.get("options", {}), **changes.get("options", {})}
    return {**plain, **changes} | ({"options": options} if options else {})


def parse(text: str) -> dict[str, str]:
    """A benchmark as it is written in a study or on the command line: a name, or `harmful=FILE` for one on your own file."""
    name, equals, file = text.partition("=")
    return {"name": f"{name}={Path(file).stem}", "data": file} if equals else {"name": name}


def names() -> list[str]:
    """Every benchmark that has a name."""
    return [*_table()]


def get_bench(name: str) -> Bench:
    """The benchmark of a name, or of a `module:attribute`.

    Raises UserError: there is none; the nearest name and all names are given.
    """
    base, equals, _ = name.partition("=")
    if equals:
        return replace(get_bench(base), name=name)
    if name in _table():
        return _table()[name]
    if name in left_out():
        raise UserError(left_out()[name])
    if Path(name).suffix in READERS:
        raise UserError(f"{name} is a file: say what its prompts want, as harmful={name} or as benign={name}.")
    bench: Bench = resolve("benchmark", name, dict.fromkeys(names(), ""))
    return bench
