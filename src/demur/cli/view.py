"""`demur view RUN`: look through traces in the browser."""

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
    """Page, search, filter, compare and label the traces of a run. Only this machine can see the page, with its URL.

    Labels go to RUN/labels/refusal.jsonl, harm.jsonl and patterns.jsonl, which `demur calibrate` reads.
    """
    from demur.report.viewer import serve

    def ready(url: str) -> None:
        common.stdout.print(url, soft_wrap=True)
        common.console.print("Ctrl-C ends it. The URL holds a secret: whoever has it can see the traces.")
        if browser:
            import webbrowser

            webbrowser.open(url)

    async def until_stopped() -> bool:
        """Serve until Ctrl-C, or until SIGTERM, which must reach the loop and not some callback in it."""
        serving = asyncio.ensure_future(serve(run, port=port, ready=ready))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
        await asyncio.wait([serving])
        return serving.cancelled() or serving.result() is not None

    common.free_port(port)
    common.console.print(f"indexing {run} …")
    if asyncio.run(until_stopped()):
        raise typer.Exit(128 + signal.SIGTERM)
