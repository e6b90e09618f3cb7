"""What a process of a sharded training holds: private memory and the largest parameter, against a whole copy each.

A random Llama of about 200 MB in float32 is loaded for training by four gloo processes of this machine, once replicated as DDP
does it and once in shards, each process reading its own part of the file. Counted is private memory (RssAnon) above that
of the process before it loads, and its peak while loading; pages of the file itself are shared and can be dropped.

    python benchmarks/shard.py [--processes 4] [--hidden 768] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def private() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def child(base: str, how: str) -> None:
    """Load as training does; the first process prints what all found."""
    import torch

    from demur.train import distributed, model
    from demur.train.settings import TrainSettings

    torch.set_num_threads(1)
    settings = TrainSettings(parallel=how, device="cpu", dtype="float32")  # type: ignore[arg-type]
    place = model.place_of(settings, model.config_of(base))
    distributed.barrier()
    before, peak, done = private(), 0, False

    def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, private())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loaded = model.load(base, settings, place)
    # A replica reads its file lazily: touch it, as the first step does.
    local = [p.to_local() if hasattr(p, "to_local") else p for p in loaded.parameters()]
    for parameter in local:
        parameter.data.mul_(1.0)
    done = True
    watcher.join()
    size = max(p.numel() * p.element_size() for p in local)
    found = distributed.all_gather((max(peak, private()) - before, private() - before, size))
    if distributed.rank() == 0:
        print(json.dumps([max(row[i] for row in found) / 2**20 for i in range(3)]))
    distributed.leave()


def measure(base: Path, how: str, processes: int) -> list[float]:
    """Megabytes: peak, afterwards, largest parameter; the worst process's."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "--local-addr=127.0.0.1", __file__, "--child", how, "--base", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("ddp", "fsdp2"))
    parser.add_argument("--base")
    given = parser.parse_args()
    if given.child:
        child(given.base, given.child)
        return
    from demur.testing.base import make_base

    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base", arch="llama", hidden=given.hidden, layers=10)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 2**20
        found = {how: measure(base, how, given.processes) for how in ("ddp", "fsdp2")}
    print(f"a model of {size:.0f} MB, {given.processes} processes; megabytes of the worst process")
    print(f"{'':<12}{'peak':>10}{'afterwards':>12}{'largest':>10}")
    for how, row in found.items():
        print(f"{how:<12}{row[0]:>10.0f}{row[1]:>12.0f}{row[2]:>10.2f}")
    names = ("less_at_peak", "less_afterwards", "less_in_one_parameter")
    figures = {name: a / b for name, a, b in zip(names, found["ddp"], found["fsdp2"], strict=True)}
    print(", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
