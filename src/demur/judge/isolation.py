"""Where a model's programs run: bubblewrap, with nothing of this machine inside but a read-only `/usr`.

A program gets its own user, process, network, host-name and message namespaces, a small file system in memory that
dies with it, an empty environment, and hard limits that a prelude sets in its own process before its first line is read.
There is no folder on the disk to clean up or to escape to. One path for all: started by root, bubblewrap itself runs as
`nobody`, because limits on processes do not bind root. Without bubblewrap nothing runs.

What holds: CPU time, idle time (what a program waits for the processor is not counted, so a busy machine changes no verdict),
address space of each process and memory of all together, shared pages included (looked at ten times a second), number of
processes and files, size of files, of the file system and of what is printed. A filter of system calls (seccomp) refuses what
would hold memory outside of all that (memfd, System V segments), io_uring, and sockets of other kinds than Unix and IP.
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
TICK = 0.1  # Seconds between two looks at the memory of all of a program's processes


class Limits(NamedTuple):
    """What a program may use."""

    seconds: float = 6.0  # CPU time of each process. A program may wait twice as long and a second without work to do.
    memory: int = 1 << 30  # Bytes: address space of each process, and memory of all together
    processes: int = 16  # Processes and threads, bubblewrap's own two included
    output: int = 8 << 20  # Bytes of standard output, of standard error, and of any file
    disk: int = 64 << 20  # Bytes of all files together


STANDARD = Limits()


class Run(NamedTuple):
    """What came of a program."""

    ending: Ending
    exit: int | None  # Its exit code, 128 + N for a signal N; `None` when it was killed from outside
    seconds: float  # Wall time, bubblewrap's start included
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
    """Run a Python program in isolation.

    Raises UserError: there is no bubblewrap; WorkError: bubblewrap itself failed, and the program did not run.
    """
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
        stdout, stderr, said = (os.pread(file.fileno(), limits.output, 0) for file in (out, err, status))
        code = _exit_code(said)
    if code is None and killed is None:
        raise WorkError(f"bubblewrap could not start the program: {stderr[-300:].decode(errors='replace').strip()}")
    ending = killed or _ending(code, stdout, stderr, limits)
    return Run(ending, None if killed else code, round(seconds, 4), stdout, stderr)


def _command(program: int, status: int, calls: int, limits: Limits) -> list[str]:
    """The command line of bubblewrap."""
    numbers = (-(-limits.seconds // 1), limits.memory, limits.processes, limits.output)
    devices = " ".join(f"--dev-bind /dev/{name} /dev/{name}" for name in ("null", "zero", "urandom"))
    # Every mount is read-only in the end, but for two small file systems in memory.
    walls = (
        "--unshare-user --disable-userns --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try "
        "--die-with-parent --new-session --clearenv --cap-drop ALL "
        f"--seccomp {calls} --hostname isolated --uid {NOBODY} --gid {NOBODY} --json-status-fd {status}"
    )
    inside = (
        f"--proc /proc --size 4096 --tmpfs /dev {devices} --remount-ro /dev "
        f"--size {limits.disk} --tmpfs /tmp --size {limits.disk} --tmpfs /box "
        f"--file {program} /box/main.py --chdir /box --remount-ro / "
        "--setenv PATH /usr/bin --setenv HOME /box --setenv PYTHONIOENCODING utf-8 --setenv OPENBLAS_NUM_THREADS 1"
    )
    own = [python(), "-I", "-c", PRELUDE, *(str(int(number)) for number in numbers)]
    return [bubblewrap(), *walls.split(), *_system(), *numpy(), *inside.split(), *own]


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
    """demur's own numpy, read-only, where the Python inside is of the same version and may read it: contest programs use it."""
    found = importlib.util.find_spec("numpy")
    same = Path(python()).resolve().name == f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not same or found is None or found.origin is None:
        return ()
    folder = Path(found.origin).parent
    if not all(one.stat().st_mode & stat.S_IXOTH for one in folder.parents):
        return ()
    places = [one for one in (folder, folder.with_name("numpy.libs")) if one.is_dir()]
    return tuple(word for one in places for word in ("--ro-bind", str(one), f"/packages/{one.name}"))


def missing() -> list[str]:
    """What isolation needs and this machine lacks: one line, or none."""
    try:
        bubblewrap(), python()
    except UserError as error:
        return [str(error)]
    return []


def bubblewrap() -> str:
    """Where bubblewrap is. Raises UserError: it is not installed; programs of a model run nowhere else."""
    if found := shutil.which("bwrap"):
        return found
    raise UserError(
        "programs written by a model run only in isolation, and bubblewrap (bwrap) is not installed: "
        "apt install bubblewrap, or leave the code benchmarks out."
    )


def python() -> str:
    """The Python that programs run under: the system's, because it lies under `/usr`. Raises UserError: there is none."""
    for name in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if Path(name).exists():
            return name
    raise UserError("isolation needs a Python under /usr, such as /usr/bin/python3: apt install python3.")


def _file(content: bytes = b"") -> IO[bytes]:
    """A file in memory with this content, to be read from its start."""
    file = os.fdopen(os.memfd_create("demur"), "w+b", buffering=0)
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    file.seek(0)
    return file


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> Ending | None:
    """Wait for the end; `time` or `memory` when it was the program's last."""
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
    """A process and all that it started."""
    found = [root]
    for pid in found:
        for file in glob.glob(f"/proc/{pid}/task/*/children"):
            found += map(int, _told(file).split())
    return found


def _told(file: str) -> str:
    """What the kernel tells of a process; empty where it is gone, or not for this user to read."""
    try:
        return Path(file).read_text()
    except OSError:
        return ""


def _memory(pid: int) -> int:
    """Bytes that a process holds, pages that it shares with others by its part of them."""
    if held := re.search(r"^Pss: +(\d+)", _told(f"/proc/{pid}/smaps_rollup"), re.MULTILINE):
        return 1024 * int(held[1])
    resident, shared = map(int, _told(f"/proc/{pid}/statm").split()[1:3] or (0, 0))
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _busy(pid: int) -> float:
    """Seconds that a process and its ended children worked, or waited for a processor."""
    worked = sum(map(int, _told(f"/proc/{pid}/schedstat").split()[:2]))
    ended = sum(map(int, _told(f"/proc/{pid}/stat").rpartition(")")[2].split()[13:15]))
    return worked / 1e9 + ended / os.sysconf("SC_CLK_TCK")


def _files(pid: int) -> int:
    """How many files a program has in its largest file system: empty ones take memory too."""
    try:
        stats = [os.statvfs(f"/proc/{pid}/root/{place}") for place in ("tmp", "box")]
    except OSError:
        return 0
    return max(one.f_files - one.f_ffree for one in stats)


FILES = 20_000  # Files that a program may have
_MACHINES = {
    # architecture, socket, mmap, and calls that are refused: memfd_create, memfd_secret, shmget, shmat, userfaultfd,
    # perf_event_open, bpf, keyctl, ptrace, io_uring_setup, io_uring_enter, io_uring_register
    "x86_64": (0xC000003E, 41, 9, (319, 447, 29, 30, 323, 298, 321, 250, 101, 425, 426, 427)),
    "aarch64": (0xC00000B7, 198, 222, (279, 447, 194, 196, 282, 241, 280, 219, 117, 425, 426, 427)),
}
_LOAD, _EQUAL, _AT_LEAST, _MASKED, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000


def _filter() -> bytes:
    """The filter of system calls in the kernel's own form (classic BPF); empty where the machine is another."""
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
    # mmap of memory that is both shared (1) and of no file (0x20)
    steps += [(_EQUAL, 0, 3, mmap), (_LOAD, 0, 0, 40), (_MASKED, 0, 1, 1), (_MASKED, 1, 0, 0x20)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _exit_code(status: bytes) -> int | None:
    """The exit code in bubblewrap's report; `None` when the program never ran to an end."""
    codes = [found["exit-code"] for found in map(json.loads, status.splitlines()) if "exit-code" in found]
    return int(codes[-1]) if codes else None


def _ending(code: int | None, stdout: bytes, stderr: bytes, limits: Limits) -> Ending:
    """How a program ended that was not killed by us."""
    if len(stdout) >= limits.output or len(stderr) >= limits.output:
        return "output"
    if code == 0:
        return "ok"
    if code in (128 + 24, 128 + 9):  # SIGXCPU, or SIGKILL a second later for who ignores it
        return "time"
    if stderr.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError"):
        return "memory"
    return "error"
