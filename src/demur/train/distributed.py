"""Many processes: started, asserted, replicated or sharded.

Several ways to start training on many devices fall back to one process without a word, or train twice into one folder.
So whoever started the processes, each asserts before the first step that the world has the size it was given, that the
model is wrapped as asked, and that all hold the same data.
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

PREFIX = "demur-progress "
STOP = "stop"  # File in a job's folder that asks its processes for a checkpoint and an end


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """Number of processes."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Number of this process."""
    return int(os.environ["RANK"]) if launched() else 0


def launch(job: dict[str, Any], *, folder: Path, settings: TrainSettings, progress: Progress) -> dict[str, Any]:
    """Train in `settings.processes` processes of this machine, started by torchrun.

    Raises:
        UserError, WorkError, CheckFailed: what the processes raised.
        SystemExit: 143, when SIGTERM came and a checkpoint was saved.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={settings.processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=127.0.0.1"]
    command += [f"--rdzv-id={os.getpid()}", "-m", "demur.train.worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads), "PYTHONUNBUFFERED": "1"}
    errors, pipe = folder / "errors.txt", subprocess.PIPE
    with (
        errors.open("w") as file,
        on_sigterm((folder / STOP).touch),
        subprocess.Popen(command, stdout=pipe, stderr=file, text=True, env=environment) as process,
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
            f"a training process ended without a result (exit code {process.returncode}); the same command goes on from "
            f"the last checkpoint. The end of its output:\n{errors.read_text(errors='replace')[-2000:]}"
        ) from None
    if "error" in result:
        raise {"UserError": UserError, "CheckFailed": CheckFailed}.get(result["kind"], WorkError)(result["error"])
    if result.get("stopped"):
        raise SystemExit(143)
    shutil.rmtree(folder)
    return dict(result["summary"])


@contextmanager
def on_sigterm(do: Callable[[], object]) -> Iterator[None]:
    """While it lasts SIGTERM does this, where it reaches the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: do())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _group() -> Any:
    """torch's functions for the group of processes that a launcher started, entered; `None`: there is one process."""
    if world_size() == 1:
        return None
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist


def assert_together(wrapped: Any, fingerprint: str) -> None:
    """Check, before the first step, that the processes are one training.

    Raises WorkError: world size, wrapper or data are not what they should be.
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
    if not is_sharded(wrapped) and not isinstance(wrapped, DistributedDataParallel):
        raise WorkError(f"the model is a {type(wrapped).__name__}, not replicated: gradients would not be shared.")
    if len(found := sorted(set(gathered(fingerprint)))) > 1:
        raise WorkError(f"the processes hold different data ({', '.join(found)}): give all of them the same files.")


def barrier() -> None:
    """Wait for all processes."""
    gathered(None)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in every process."""
    if (dist := _group()) is None:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def shared(value: Any) -> Any:
    """The first process's value, in every process."""
    if (dist := _group()) is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; they must stop at the same step."""
    return any(gathered(flag))


def mean(value: Any) -> Any:
    """The mean of a tensor over all processes."""
    if (dist := _group()) is None:
        return value
    dist.all_reduce(value)
    return value / world_size()


def wrapped(model: Any, place: Any) -> Any:
    """A model as several processes train it together; as it is in one process, or where it is sharded already."""
    if world_size() == 1 or is_sharded(model):
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, device_ids=[place.device] if place.device.type == "cuda" else None)


def synced(model: Any, last: bool) -> AbstractContextManager[Any]:
    """Around a micro-batch: replicas exchange gradients at the last one of a step only.

    A sharded model does so every time: kept whole until the last, gradients would undo the sharding.
    """
    skip: AbstractContextManager[Any] = nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
    return skip


def shard(model: Any, place: Any) -> Any:
    """Shard parameters, gradients and optimizer states over all processes (FSDP2): each layer a unit, the rest one more."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(place.device.type, (world_size(),))
    types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if place.mixed else {}
    policy = MixedPrecisionPolicy(**types)
    layers = [part for part in model.modules() if type(part).__name__.endswith("DecoderLayer")]
    if not layers:
        raise UserError("train.parallel=fsdp2 found no decoder layers in this architecture; use ddp.")
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def is_sharded(model: Any) -> bool:
    """Whether the parameters are spread over processes."""
    return hasattr(model, "parameters") and any(hasattr(p, "full_tensor") for p in model.parameters())


def whole(parameter: Any) -> Any:
    """A parameter in whole, of whatever is sharded; all processes must call it."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()


def assign(parameter: Any, values: Any) -> None:
    """Give a parameter, sharded or not, its values."""
    from torch.distributed.tensor import distribute_tensor

    if hasattr(parameter, "full_tensor"):
        values = distribute_tensor(values.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.data.copy_(values)


def leave(*, dismiss: bool = False) -> None:
    """Leave the group of processes; `dismiss` tells those that follow this one that there is no more to do."""
    if (dist := _group()) is not None:
        if dismiss:
            shared(None)
        dist.destroy_process_group()
