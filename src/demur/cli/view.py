"""`demur view RUN`: browse and label traces in the browser."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common


@common.verb("")
def view(
    run: Path,
    flags: common.Flags,
    browser: Annotated[bool, common.flag("browser/--no-browser", "browser")] = True,
    port: Annotated[int, common.flag("port", min=0, max=65535)] = 0,
) -> None:
    """Browse, search, compare and label the traces of a run in the browser. The page is served to this machine only.

    Labels are stored in RUN/labels (refusal.jsonl, harm.jsonl, patterns.jsonl), for `demur calibrate`.
    """
    from demur.report.viewer import serve

    def ready(url: str) -> None:
        common.stdout.print(url, soft_wrap=True)
        common.console.print("Ctrl-C ends the server. The URL holds a secret: whoever has it can see the traces.")
        if browser:
            import webbrowser

            webbrowser.open(url)

    async def until_stopped() -> bool:
        """Serve until Ctrl-C or SIGTERM; returns whether it was SIGTERM, which the loop itself must handle."""
        serving = asyncio.ensure_future(serve(run, port=port, ready=ready))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
        await asyncio.wait([serving])
        return serving.cancelled() or serving.result() is not None

    common.free_port(port)
    common.console.print(f"indexing {run} …")
    if asyncio.run(until_stopped()):
        raise typer.Exit(128 + signal.SIGTERM)
