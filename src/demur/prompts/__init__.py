"""Where prompts and traces come from: sources by name, and one loader for the files that people have."""

SOURCES = {
    "mini-harmful": "demur.mini.benches:read_harmful",
    "mini-benign": "demur.mini.benches:read_benign",
    "mini-arithmetic": "demur.mini.benches:read_arithmetic",
    "advbench": "demur.bench.sources:advbench",
    "harmbench": "demur.bench.sources:harmbench",
    "safebench": "demur.bench.sources:safebench",
    "strongreject": "demur.bench.sources:strongreject",
    "wildjailbreak": "demur.bench.sources:wildjailbreak",
    "xstest": "demur.bench.sources:xstest",
    "xstest-train": "demur.bench.xstest:read_train",
    "orbench-hard": "demur.bench.sources:orbench_hard",
}
"""Name -> `module:function`, called as `read(path, n=…, seed=…)`; the path is `None` for what is generated, and the
local copy (`data`) for what is not."""
GENERATED = frozenset({"mini-harmful", "mini-benign", "mini-arithmetic"})
"""Sources that read no file."""
