"""Runs programs that a model wrote: in bubblewrap, where nothing of this machine is visible but a read-only `/usr`.

A program gets its own user, process, network, host-name and message namespaces, a small file system in memory that ends
with it, an empty environment, and hard limits that a prelude sets in its own process before its first line is read.
There is no folder on the disk to clean up or to escape to. When demur runs as root, bubblewrap itself runs as `nobody`,
because limits on processes do not bind root. Without bubblewrap nothing runs.

Limited are CPU time, idle time (waiting for a processor does not count, so that verdicts do not depend on load),
address space of each process and memory of all together, shared pages included (checked ten times a second), the number
of processes and files, the size of files, of the file system and of the output. A filter of system calls (seccomp)
refuses memory outside of these limits (memfd, System V segments), io_uring, and sockets of other kinds than Unix and
IP.
"""

import functools
import glob
import importlib.util
import json
import os
import platform
import re
import select
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

from demur.errors import UserError, WorkError

Ending = Literal["ok", "error", "time", "memory", "output"]  # `error`: by an exit code, an exception or a signal
NOBODY = 65534
TICK = 0.1  # Seconds between two checks of the memory of a program's processes


class Limits(NamedTuple):
    """Limits of one program."""

    seconds: float = 6.0  # CPU time of each process; a program may be idle for twice as long and a second
    memory: int = 1 << 30  # Bytes: address space of each process, and memory of all together
    processes: int = 16  # Processes and threads, including bubblewrap's own two
    output: int = 8 << 20  # Bytes of standard output, of standard error, and of any file
    disk: int = 64 << 20  # Bytes of all files together


STANDARD = Limits()


class Run(NamedTuple):
    """The result of a program."""

    ending: Ending
    exit: int | None  # Its exit code, 128 + N for a signal N; `None` when demur killed it
    seconds: float  # Wall time, including the start of bubblewrap
    stdout: bytes
    stderr: bytes


PRELUDE = """
import resource as r, sys
cpu, memory, processes, output = map(int, sys.argv[1:5])
for what, soft, hard in ((r.RLIMIT_CPU, cpu, cpu + 1), (r.RLIMIT_AS, memory, memory), (r.RLIMIT_NPROC, processes, processes),
                         (r.RLIMIT_FSIZE, output, output), (r.RLIMIT_NOFILE, 64, 64), (r.RLIMIT_CORE, 0, 0)):
    r.setrlimit(what, (soft, hard))
sys.argv[:] = ["/box/main.py"]
sys.path.insert(0, "/box")
sys.path.append("/packages")
del r, what, soft, hard, cpu, memory, processes, output
with open("/box/main.py", encoding="utf-8") as file:
    source = file.read()
exec(compile(source, "/box/main.py", "exec"), {"__name__": "__main__", "__file__": "/box/main.py"})
"""


def run_program(source: str, *, stdin: bytes = b"", limits: Limits = STANDARD) -> Run:
    """Run a Python program. Raises UserError: bubblewrap is not installed; WorkError: it did not start the program."""
    nobody = NOBODY if os.geteuid() == 0 else None
    with (
        _file(source.encode("utf-8", "replace")) as program,
        _file(stdin) as given,
        _file() as out,
        _file() as err,
        _file() as status,
        _file(_filter()) as calls,
    ):
        began = time.monotonic()
        process = subprocess.Popen(
            _command(program.fileno(), status.fileno(), calls.fileno(), limits),
            stdin=given,
            stdout=out,
            stderr=err,
            cwd="/",
            env={},
            pass_fds=(program.fileno(), status.fileno(), calls.fileno()),
            start_new_session=True,
            user=nobody,
            group=nobody,
            extra_groups=None if nobody is None else [],
        )
        try:
            killed = _watch(process, limits)
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - began
        stdout, stderr, report = (os.pread(file.fileno(), limits.output, 0) for file in (out, err, status))
        codes = [line["exit-code"] for line in map(json.loads, report.splitlines()) if "exit-code" in line]
        code = int(codes[-1]) if codes else None  # `None`: the program did not run to its end
    if code is None and killed is None:
        raise WorkError(f"bubblewrap could not start the program: {stderr[-300:].decode(errors='replace').strip()}")
    ending = killed or _ending(code, stdout, stderr, limits)
    return Run(ending, None if killed else code, round(seconds, 4), stdout, stderr)


def _command(program: int, status: int, calls: int, limits: Limits) -> list[str]:
    """The command line of bubblewrap."""
    numbers = (-(-limits.seconds // 1), limits.memory, limits.processes, limits.output)
    devices = " ".join(f"--dev-bind /dev/{name} /dev/{name}" for name in ("null", "zero", "urandom"))
    # In the end every mount is read-only, except for two small file systems in memory.
    namespaces = (
        "--unshare-user --disable-userns --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try "
        "--die-with-parent --new-session --clearenv --cap-drop ALL "
        f"--seccomp {calls} --hostname isolated --uid {NOBODY} --gid {NOBODY} --json-status-fd {status}"
    )
    mounts = (
        f"--proc /proc --size 4096 --tmpfs /dev {devices} --remount-ro /dev "
        f"--size {limits.disk} --tmpfs /tmp --size {limits.disk} --tmpfs /box "
        f"--file {program} /box/main.py --chdir /box --remount-ro / "
        "--setenv PATH /usr/bin --setenv HOME /box --setenv PYTHONIOENCODING utf-8 --setenv OPENBLAS_NUM_THREADS 1"
    )
    prelude = [python(), "-I", "-c", PRELUDE, *(str(int(number)) for number in numbers)]
    return [bubblewrap(), *namespaces.split(), *_system(), *numpy(), *mounts.split(), *prelude]


def _system() -> Iterator[str]:
    """The read-only parts of this machine that Python needs."""
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("bin", "lib", "lib64", "sbin"):
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))


@functools.cache
def numpy() -> tuple[str, ...]:
    """Read-only mounts of demur's own numpy, for contest programs, if the system's Python has the same version."""
    spec = importlib.util.find_spec("numpy")
    same = Path(python()).resolve().name == f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not same or spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent
    if not all(parent.stat().st_mode & stat.S_IXOTH for parent in folder.parents):
        return ()
    folders = [path for path in (folder, folder.with_name("numpy.libs")) if path.is_dir()]
    return tuple(word for path in folders for word in ("--ro-bind", str(path), f"/packages/{path.name}"))


def missing() -> list[str]:
    """What isolation needs and this machine lacks: one message, or none."""
    try:
        bubblewrap(), python()
    except UserError as error:
        return [str(error)]
    return []


def bubblewrap() -> str:
    """The path of bubblewrap. Raises UserError: it is not installed."""
    if path := shutil.which("bwrap"):
        return path
    raise UserError(
        "programs written by a model run only in isolation, and bubblewrap (bwrap) is not installed: "
        "apt install bubblewrap, or leave the code benchmarks out."
    )


def python() -> str:
    """The system's Python, which programs run under because it is in `/usr`. Raises UserError: there is none."""
    for name in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if Path(name).exists():
            return name
    raise UserError("isolation needs a Python under /usr, such as /usr/bin/python3: apt install python3.")


def _file(content: bytes = b"") -> IO[bytes]:
    """A file in memory with this content, positioned at its start."""
    file = os.fdopen(os.memfd_create("demur"), "w+b", buffering=0)
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    file.seek(0)
    return file


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> Ending | None:
    """Wait until the program ends; `time` or `memory` when it exceeded that limit instead."""
    began, idle = time.monotonic(), 2 * limits.seconds + 1
    handle = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while (passed := time.monotonic() - began) < 20 * limits.seconds + 60:
            if poll.poll(1000 * TICK):
                return None
            pids = _descendants(process.pid)
            if sum(map(_memory, pids)) > limits.memory or _files(pids[-1]) > FILES:
                return "memory"
            if passed > idle and passed - sum(map(_busy, pids)) > idle:
                return "time"
        return "time"
    finally:
        os.close(handle)


def _descendants(root: int) -> list[int]:
    """The ids of a process and its descendants."""
    pids = [root]
    for pid in pids:
        for file in glob.glob(f"/proc/{pid}/task/*/children"):
            pids += map(int, _proc(file).split())
    return pids


def _proc(file: str) -> str:
    """The content of a file under `/proc`; empty where the process is gone, or this user may not read it."""
    try:
        return Path(file).read_text()
    except OSError:
        return ""


def _memory(pid: int) -> int:
    """The bytes of memory that a process uses; a page shared by several processes counts for its share."""
    if pss := re.search(r"^Pss: +(\d+)", _proc(f"/proc/{pid}/smaps_rollup"), re.MULTILINE):
        return 1024 * int(pss[1])
    resident, shared = map(int, _proc(f"/proc/{pid}/statm").split()[1:3] or (0, 0))
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _busy(pid: int) -> float:
    """Seconds that a process and its ended children worked, or waited for a processor."""
    worked = sum(map(int, _proc(f"/proc/{pid}/schedstat").split()[:2]))
    ended = sum(map(int, _proc(f"/proc/{pid}/stat").rpartition(")")[2].split()[13:15]))
    return worked / 1e9 + ended / os.sysconf("SC_CLK_TCK")


def _files(pid: int) -> int:
    """The number of files in a program's larger file system: empty files take memory too."""
    try:
        systems = [os.statvfs(f"/proc/{pid}/root/{place}") for place in ("tmp", "box")]
    except OSError:
        return 0
    return max(system.f_files - system.f_ffree for system in systems)


FILES = 20_000  # Files that a program may create
_MACHINES = {
    # architecture, socket, mmap, and the refused calls: memfd_create, memfd_secret, shmget, shmat, userfaultfd,
    # perf_event_open, bpf, keyctl, ptrace, io_uring_setup, io_uring_enter, io_uring_register
    "x86_64": (0xC000003E, 41, 9, (319, 447, 29, 30, 323, 298, 321, 250, 101, 425, 426, 427)),
    "aarch64": (0xC00000B7, 198, 222, (279, 447, 194, 196, 282, 241, 280, 219, 117, 425, 426, 427)),
}
_LOAD, _EQUAL, _AT_LEAST, _MASKED, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000


def _filter() -> bytes:
    """The filter of system calls as classic BPF, the kernel's format; on an unknown architecture it allows all."""
    if platform.machine() not in _MACHINES:
        return struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    arch, socket, mmap, refused = _MACHINES[platform.machine()]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # the same calls by other numbers (x32)
    for call in refused:
        steps += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _REFUSE)]
    # socket(domain): Unix, IPv4, netlink and IPv6 only
    steps += [(_EQUAL, 0, 7, socket), (_LOAD, 0, 0, 16)]
    steps += [(_EQUAL, 4 - at, 0, domain) for at, domain in enumerate((1, 2, 10, 16))]
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    # mmap of memory that is both shared (1) and anonymous (0x20)
    steps += [(_EQUAL, 0, 3, mmap), (_LOAD, 0, 0, 40), (_MASKED, 0, 1, 1), (_MASKED, 1, 0, 0x20)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _ending(code: int | None, stdout: bytes, stderr: bytes, limits: Limits) -> Ending:
    """How a program ended that demur did not kill."""
    if len(stdout) >= limits.output or len(stderr) >= limits.output:
        return "output"
    if code == 0:
        return "ok"
    if code in (128 + 24, 128 + 9):  # SIGXCPU, or SIGKILL a second later where that is ignored
        return "time"
    if stderr.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError"):
        return "memory"
    return "error"
