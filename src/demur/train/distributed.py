"""Training in several processes: started, checked to be one training, replicated or sharded.

Several ways to start training on many devices silently fall back to one process, or train twice into one folder. So
whoever started the processes, each one checks before the first step that the group has the size it was given, that the
model is wrapped as asked, and that all processes hold the same data.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from demur.errors import CheckFailed, UserError, WorkError
from demur.interfaces import Progress
from demur.train.settings import TrainSettings

PREFIX = "demur-progress "  # Begins a line of a worker's output that reports progress
STOP = "stop"  # File in a job's folder that asks its processes to save a checkpoint and exit
TORCHRUN = "torch.distributed.run --rdzv-backend=c10d --rdzv-endpoint=localhost:0 --local-addr=127.0.0.1"


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """Number of processes."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Index of this process; 0 is the one that reports and writes."""
    return int(os.environ["RANK"]) if launched() else 0


def launch(job: dict[str, Any], *, folder: Path, settings: TrainSettings, progress: Progress) -> dict[str, Any]:
    """Train in `settings.processes` processes on this machine, started by torchrun; returns the summary.

    Raises:
        UserError, WorkError, CheckFailed: what the processes raised.
        SystemExit: 143, after SIGTERM, once a checkpoint is saved.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", *TORCHRUN.split(), f"--rdzv-id={os.getpid()}"]
    command += [f"--nproc-per-node={settings.processes}", "-m", "demur.train.worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads), "PYTHONUNBUFFERED": "1"}
    log = folder / "errors.txt"
    with (
        log.open("w") as stderr,
        on_sigterm((folder / STOP).touch),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(PREFIX):
                    done, total, remark = json.loads(line.removeprefix(PREFIX))
                    progress(done, total, remark)
        except BaseException:
            process.terminate()
            raise
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        raise WorkError(
            f"a training process ended without a result (exit code {process.returncode}); the same command resumes "
            f"from the last checkpoint. The end of its output:\n{log.read_text(errors='replace')[-2000:]}"
        ) from None
    if "error" in result:
        raise {"UserError": UserError, "CheckFailed": CheckFailed}.get(result["kind"], WorkError)(result["error"])
    if result.get("stopped"):
        raise SystemExit(143)
    shutil.rmtree(folder)
    return dict(result["summary"])


@contextmanager
def on_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """Call `action` on SIGTERM inside the block; in other threads than the main one signals cannot be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _group() -> Any:
    """`torch.distributed`, initialised for the processes that a launcher started; `None` in a single process."""
    if world_size() == 1:
        return None
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist


def check_group(wrapped: Any, fingerprint: str) -> None:
    """Check, before the first step, that all processes run one and the same training.

    Raises WorkError: the group's size, the model's wrapper or the data are not as they should be.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    size = world_size()
    connected = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if connected != size:
        raise WorkError(
            f"{size} processes were started and {connected} are connected: each would train alone. Start with torchrun."
        )
    if size == 1:
        return
    if not is_sharded(wrapped) and not isinstance(wrapped, DistributedDataParallel):
        raise WorkError(f"the model is a {type(wrapped).__name__}, not replicated: gradients would not be shared.")
    if len(held := sorted(set(all_gather(fingerprint)))) > 1:
        raise WorkError(f"the processes hold different data ({', '.join(held)}): give all of them the same files.")


def barrier() -> None:
    """Wait for all processes."""
    all_gather(None)


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, in every process."""
    if (dist := _group()) is None:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """The first process's value, in every process."""
    if (dist := _group()) is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean(value: Any) -> Any:
    """The mean of a tensor over all processes."""
    if (dist := _group()) is None:
        return value
    dist.all_reduce(value)
    return value / world_size()


def wrap(model: Any, place: Any) -> Any:
    """A model, replicated over the processes; unchanged in a single process, or if it is sharded."""
    if world_size() == 1 or is_sharded(model):
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, device_ids=[place.device] if place.device.type == "cuda" else None)


def gradient_sync(wrapped: Any, *, last: bool) -> AbstractContextManager[Any]:
    """The context of a micro-batch: replicas exchange gradients at the `last` one of a step only.

    A sharded model exchanges them every time: gradients kept whole until the last one would undo the sharding.
    """
    skip: AbstractContextManager[Any] = nullcontext() if last or not hasattr(wrapped, "no_sync") else wrapped.no_sync()
    return skip


def shard(model: Any, place: Any) -> Any:
    """Shard parameters, gradients and optimizer states over all processes (FSDP2), layer by layer, then the rest."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(place.device.type, (world_size(),))
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if place.mixed else {}
    policy = MixedPrecisionPolicy(**dtypes)
    layers = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]
    if not layers:
        raise UserError("train.parallel=fsdp2 found no decoder layers in this architecture; use ddp.")
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return model


def is_sharded(model: Any) -> bool:
    """Whether the parameters are spread over processes."""
    return hasattr(model, "parameters") and any(hasattr(p, "full_tensor") for p in model.parameters())


def full_tensor(tensor: Any) -> Any:
    """A parameter or another tensor, gathered if it is sharded; all processes must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def assign(parameter: Any, values: Any) -> None:
    """Set a parameter, sharded or not, to the same values in every process."""
    from torch.distributed.tensor import distribute_tensor

    if hasattr(parameter, "full_tensor"):
        values = distribute_tensor(values.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.data.copy_(values)


def leave(*, dismiss: bool = False) -> None:
    """Leave the group; `dismiss` ends the processes that wait for another job in `trainer.follow`."""
    if (dist := _group()) is not None:
        if dismiss:
            broadcast(None)
        dist.destroy_process_group()
