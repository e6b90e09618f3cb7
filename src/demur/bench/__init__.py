"""Benchmarks by name. `table.yaml` lists demur's own, each a form plus a source; `module:attribute` names any other.

A benchmark is one record (`spec.Bench`) of prompts, sampling, judge, query and part, metrics and a version. A name with
`@` is a separate protocol (`xstest@paper-v2`), one with `=` is a benchmark on a user's file (`harmful=my_prompts`).
`load.load_prompts` reads the prompts; `report.metrics` computes the numbers.
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
    """Benchmarks that demur leaves out -> the reason."""
    return dict(_data()["left_out"])


@cache
def _table() -> dict[str, Bench]:
    """The benchmarks of the table and their protocols."""
    data, benches = _data(), dict[str, Bench]()
    for name, entry in data["benches"].items():
        fields = {key: value for key, value in entry.items() if key not in ("kind", "protocols")}
        base = _merged(data["kinds"][entry["kind"]], fields)
        for protocol, changes in {"": {}, **entry.get("protocols", {})}.items():
            full, fields = f"{name}@{protocol}".rstrip("@"), _merged(base, changes)
            metrics = [METRICS[metric] for metric in fields["metrics"]]
            benches[full] = msgspec.convert(fields | {"name": full, "metrics": metrics}, Bench)
    return benches


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with changes: options are merged, all else is replaced."""
    options = {**base.get("options", {}), **changes.get("options", {})}
    return {**base, **changes} | ({"options": options} if options else {})


def parse(text: str) -> dict[str, str]:
    """A benchmark as a study or the command line writes it: a name, or `harmful=FILE` for one on a user's file."""
    name, equals, file = text.partition("=")
    return {"name": f"{name}={Path(file).stem}", "data": file} if equals else {"name": name}


def names() -> list[str]:
    """The names of all benchmarks of the table, protocols included."""
    return [*_table()]


def get_bench(name: str) -> Bench:
    """A benchmark by name or `module:attribute`. Raises UserError: it is unknown, left out, or a bare file name."""
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
