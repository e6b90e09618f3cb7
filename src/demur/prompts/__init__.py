"""Where prompts and traces come from: sources by name, and one loader for the files that people have."""

SOURCES = {
    "mini-harmful": "demur.mini.benches:read_harmful",
    "mini-benign": "demur.mini.benches:read_benign",
    "mini-arithmetic": "demur.mini.benches:read_arithmetic",
    "advbench": "demur.bench.load:advbench",
    "harmbench": "demur.bench.load:harmbench",
    "safebench": "demur.bench.load:safebench",
    "strongreject": "demur.bench.load:strongreject",
    "wildjailbreak": "demur.bench.load:wildjailbreak",
    "xstest": "demur.bench.load:xstest",
    "xstest-train": "demur.bench.xstest:read_train",
    "orbench-hard": "demur.bench.load:orbench_hard",
}
"""Name -> `module:function`, called as `read(path, n=…, seed=…)`; the path is `None` for what is generated, and the
local copy (`data`) for what is not."""
GENERATED = frozenset({"mini-harmful", "mini-benign", "mini-arithmetic"})
"""Sources that read no file."""
