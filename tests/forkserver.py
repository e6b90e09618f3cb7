"""Python programs that begin with their imports done: a server imports what demur and its libraries need, once, and forks.

    python forkserver.py SOCKET                     serves, until its standard input closes
    python -S -E forkserver.py SOCKET ARGUMENTS…    as `python ARGUMENTS…`: -c CODE, -m MODULE, - or a file, and what follows

Importing torch and transformers takes five seconds of a slow core, a fork takes a hundredth. The second form, which
`tests.made.python` puts into a program, gives its directory, environment and standard files to a fork of the server, and ends
as that does, also by a signal. The fork gets SIGTERM and SIGINT when the program gets them, and is killed when it is killed.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any

IMPORTS = (
    "torch", "torch.utils.data", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.auto.tokenization_auto", "accelerate", "peft", "scipy.stats", "math_verify", "aiohttp.web", "demur.testing.server",
    *(f"demur.cli.{verb}" for verb in ("run", "evaluate", "judge", "distil", "diagnose", "mix", "train", "check", "report")),
    "demur.train.trainer", "demur.models.local", "demur.judge.refusal", "demur.judge.maths",
)  # fmt: skip
FORWARDED = (signal.SIGTERM, signal.SIGINT)


def serve(path: str) -> None:
    """Fork for whoever connects, until nobody holds the other end of standard input."""
    import gc
    import importlib
    import shutil

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("listening", flush=True)
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # or every fork would look through all that was imported
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(os.path.dirname(path))
            return
        conversation, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os._exit(_attend(conversation))
        conversation.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _attend(conversation: socket.socket) -> int:
    """Start a program for a client, pass on what signals the client got, and tell it how the program ended."""
    sent, files, _, _ = socket.recv_fds(conversation, 1 << 20, 3)
    while not sent.endswith(b"\n"):
        sent += conversation.recv(1 << 20)
    told = json.loads(sent)
    child = os.fork()
    if child == 0:
        conversation.close()
        os._exit(_run(told, files))
    for file in (*files, 0, 1, 2):
        os.close(file)
    ended = os.pidfd_open(child)
    watched: list[Any] = [conversation, ended]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if ended in ready:
            status = os.waitpid(child, 0)[1]
            conversation.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            return 0
        signals = conversation.recv(64)
        for number in signals or [signal.SIGKILL]:
            os.kill(child, number)


def _run(told: dict[str, Any], files: list[int]) -> int:
    """The program, in this process; its exit code."""
    import atexit
    import runpy
    import traceback
    import types

    for to, file in enumerate(files):
        os.dup2(file, to)
        os.close(file)
    for number in told["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(told["env"])
    sys.stdin, sys.stdout = open(0), open(1, "w", 1)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace")  # noqa: SIM115
    how, *rest = [word for at, word in enumerate(told["argv"]) if at or word != "-u"]
    path = [place for place in told["env"].get("PYTHONPATH", "").split(os.pathsep) if place]
    code: object = 0
    try:
        if how == "-m":
            sys.path[:0] = [os.getcwd(), *path]
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif how in ("-c", "-"):
            sys.path[:0] = ["", *path]
            sys.argv = [how, *(rest[1:] if how == "-c" else rest)]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0] if how == "-c" else sys.stdin.read(), "<string>", "exec"), main.__dict__)
        else:
            sys.path[:0] = [os.path.dirname(os.path.abspath(how)), *path]
            sys.argv = [how, *rest]
            runpy.run_path(how, run_name="__main__")
    except SystemExit as left:
        code = left.code
        if code is not None and not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return (code if isinstance(code, int) else int(code is not None)) & 0xFF


def ask(path: str, argv: list[str]) -> None:
    """Have the server run a program, and end as it does."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    ignored = [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    told = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ), "ignored": ignored}
    data = json.dumps(told).encode() + b"\n"
    for number in FORWARDED:
        if number not in ignored:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
    sent = socket.send_fds(server, [data], [0, 1, 2])
    server.sendall(data[sent:])
    code = int(server.makefile().readline() or "1")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    ask(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else serve(sys.argv[1])
