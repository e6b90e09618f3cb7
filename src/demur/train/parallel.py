"""Many processes: started, asserted, replicated or sharded.

Several ways to start training on many devices fall back to one process without a word, or train twice into one folder.
So whoever started the processes, each asserts before the first step that the world has the size it was given, that the
model is wrapped as asked, and that all hold the same data.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from demur.errors import CheckFailed, UserError, WorkError
from demur.interfaces import Progress
from demur.records import Example, write_jsonl
from demur.train.settings import TrainSettings

PREFIX = "demur-progress "
STOP = "stop"
"""File in a job's folder that asks its processes for a checkpoint and an end."""


Runner = Callable[[Path, TrainSettings, Progress], tuple[str, int]]
elsewhere: ContextVar[Runner | None] = ContextVar("elsewhere", default=None)
"""How the processes of a job are run where one machine does not hold them: whoever runs the stage knows, not the training."""


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def rank() -> int:
    """Number of this process."""
    return int(os.environ.get("RANK", "0")) if launched() else 0


def launch(
    examples: Sequence[Example],
    *,
    base: Path | str,
    out: Path,
    settings: TrainSettings,
    held_out: Sequence[Example],
    progress: Progress,
) -> dict[str, Any]:
    """Train in `settings.processes` processes started by torchrun, on this machine or where `elsewhere` says.

    Raises:
        UserError, WorkError: what the processes raised.
        SystemExit: 143, when SIGTERM came and a checkpoint was saved.
    """
    job = out / ".job"
    job.mkdir(parents=True, exist_ok=True)
    write_jsonl(job / "examples.jsonl", examples)
    write_jsonl(job / "held_out.jsonl", held_out)
    (job / "job.json").write_text(
        json.dumps({"base": str(base), "out": str(out), "settings": settings.model_dump(mode="json")})
    )
    for name in ("result.json", STOP):
        (job / name).unlink(missing_ok=True)
    noise, code = (elsewhere.get() or _here)(job, settings, progress)
    try:
        result: dict[str, Any] = json.loads((job / "result.json").read_text())
    except FileNotFoundError:
        raise WorkError(
            f"a training process ended without a result (exit code {code}); the same command goes on from "
            f"the last checkpoint. Its last words:\n{noise[-2000:]}"
        ) from None
    if "error" in result:
        raise {"UserError": UserError, "CheckFailed": CheckFailed}.get(result["kind"], WorkError)(result["error"])
    if result.get("stopped"):
        raise SystemExit(143)
    shutil.rmtree(job)
    summary: dict[str, Any] = result["summary"]
    return summary


def _here(job: Path, settings: TrainSettings, progress: Progress) -> tuple[str, int]:
    """All processes on this machine."""
    flags = [f"--nproc-per-node={settings.processes}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return agent(job, [*flags, "--local-addr=127.0.0.1", f"--rdzv-id={os.getpid()}"], settings, progress)


def agent(
    job: Path, flags: Sequence[str], settings: TrainSettings, progress: Progress, *, tied: bool = False
) -> tuple[str, int]:
    """Run torchrun with these flags until its processes have ended; gives what they wrote to standard error, and its code.

    `tied`: it ends with the process that called, however that ends.
    """
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "demur.train.worker", str(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_tie if tied else None,
    ) as process:
        noise = _listen(process, progress, stop=job / STOP)
    return noise, process.returncode


def _tie() -> None:
    """Have the kernel end this process when its parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _listen(process: subprocess.Popen[str], progress: Progress, *, stop: Path) -> str:
    """Pass progress on, and SIGTERM by a file; gives what was written to standard error."""
    said: list[str] = []
    assert process.stderr is not None
    assert process.stdout is not None
    errors = process.stderr
    reader = threading.Thread(target=lambda: said.extend(errors), daemon=True)
    reader.start()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.touch()) if main else None
    try:
        for line in process.stdout:
            if line.startswith(PREFIX):
                done, total, remark = json.loads(line.removeprefix(PREFIX))
                progress(done, total, remark)
        process.wait()
    except BaseException:
        process.terminate()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
    reader.join(timeout=5)
    return "".join(said)


def assert_together(wrapped: Any, mark: str, *, sharded: bool) -> None:
    """Check, before the first step, that the processes are one training.

    Raises:
        WorkError: world size, wrapper or data are not what they should be.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    size = world_size()
    real = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if real != size:
        raise WorkError(
            f"{size} processes were started and {real} are connected: they would train apart. Start with torchrun."
        )
    if size == 1:
        return
    if not sharded and not isinstance(wrapped, DistributedDataParallel):
        raise WorkError(f"the model is a {type(wrapped).__name__}, not replicated: gradients would not be shared.")
    marks: list[Any] = [None] * size
    dist.all_gather_object(marks, mark)
    if len(set(marks)) > 1:
        raise WorkError(
            f"the processes hold different data ({', '.join(sorted(set(marks)))}): give all of them the same files."
        )


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def shared(value: Any) -> Any:
    """The first process's value, in every process."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; they must stop at the same step."""
    if world_size() == 1:
        return flag
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor(int(flag), device=device)
    dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return bool(count.item())


def shard(model: Any, place: Any) -> Any:
    """Shard parameters, gradients and optimizer states over all processes (FSDP2): each layer a unit, the rest one more."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(place.device.type, (world_size(),))
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if place.mixed
        else MixedPrecisionPolicy()
    )
    model.to(place.device)
    layers = [part for part in model.modules() if type(part).__name__.endswith("DecoderLayer")]
    if not layers:
        raise UserError("train.parallel=fsdp2 found no decoder layers in this architecture; use ddp.")
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # Tells the Trainer that placement and reduction are done: it must neither wrap nor shard again.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner._is_distributed_loading_by_transformers = inner._is_fsdp_managed_module = True
    return model


def is_sharded(model: Any) -> bool:
    """Whether the parameters are spread over processes."""
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def whole_state(model: Any) -> dict[str, Any]:
    """The whole weights of a sharded model, on the first process; empty elsewhere. All processes must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def save_shards(model: Any, optimizer: Any, folder: Path) -> None:
    """Each process writes its part of weights and optimizer."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder / "shards")


def load_shards(model: Any, optimizer: Any, folder: Path) -> None:
    """Each process reads its part, whatever number of processes wrote them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder / "shards")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)


def finish() -> None:
    """Leave the group of processes."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
