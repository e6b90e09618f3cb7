"""The trace viewer: a small server on this machine alone, and a page of plain JavaScript.

Traces hold harmful text that models wrote, so nobody else may see them and they must not act: every path begins with a
random token, a foreign Host or Origin gets no answer, the page may only load from and send to this server, and text
reaches it as text.
"""

import asyncio
import secrets
import threading
from collections.abc import Callable
from importlib.resources import files
from inspect import isawaitable
from mimetypes import guess_type
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec.structs import asdict

from demur.errors import UserError
from demur.records import PATTERNS, Trace, encode
from demur.report.format import passages, visible
from demur.report.index import Index
from demur.report.labels import KINDS, Labels, widths

PAGE = 200  # Most traces in one answer
SHOWN = 100_000  # Characters of one text that are sent unless all of it is asked for
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
CALIBRATE = {"refusal": "refusal", "harm": "guard --detector NAME=MODEL", "patterns": "patterns"}  # By kind of label
FILES = ("viewer.html", "viewer.js", "viewer.css")
OF_RUN = ("report.html", "results.csv")


class Viewer:
    """Answers the page's requests about one run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.token = secrets.token_urlsafe(24)
        self.index = Index(run)
        self.labels = Labels(run)
        self.hosts: frozenset[str] = frozenset()

    def app(self) -> web.Application:
        """The web application; `hosts` must be set before it serves anything."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            token, origin = request.path.split("/", 2)[1], request.headers.get("Origin")
            trusted = (
                request.host in self.hosts
                and secrets.compare_digest(token.encode(), self.token.encode())
                and (origin is None or origin in {f"http://{host}" for host in self.hosts})
                and request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
            )
            if not trusted:
                return web.Response(status=403, text="")
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text="")
            except Exception as error:  # Any bad request: a number too large for SQLite, a list for a body, deep JSON
                response = web.json_response({"error": str(error)}, status=400)
            dropped = "Content-Security-Policy" * request.path.endswith("/report.html")  # The page has its own policy
            response.headers.update({key: value for key, value in HEADERS.items() if key != dropped})
            return response

        application = web.Application(middlewares=[guarded], client_max_size=1 << 20)
        at, number = "/" + self.token, "{row:[0-9]{1,15}}"
        application.router.add_get(f"{at}/api/about", self._answer(lambda request: self.about()))
        application.router.add_get(f"{at}/api/traces", self._answer(self._traces))
        application.router.add_get(f"{at}/api/trace/{number}", self._answer(self._trace))
        application.router.add_post(f"{at}/api/label/{number}", self._answer(self._label))
        application.router.add_get(at + "/{name:[a-z.]*}", self._file)
        return application

    def _answer(self, make: Callable[[web.Request], Any]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            body = make(request)
            return web.Response(body=encode(await body if isawaitable(body) else body), content_type="application/json")

        return handler

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"] or FILES[0]
        place = files("demur.report").joinpath("templates", name) if name in FILES else self.run / name
        if name not in FILES + OF_RUN or not place.is_file():
            raise web.HTTPNotFound
        return web.Response(body=place.read_bytes(), content_type=guess_type(name)[0], charset="utf-8")

    def _asked(self, request: web.Request) -> tuple[int, Trace]:
        """Row and trace of a request."""
        row = int(request.match_info["row"])
        if trace := self.index.trace(row):
            return row, trace
        raise web.HTTPNotFound

    def about(self) -> dict[str, Any]:
        """The values to filter by and to label with."""
        command = "demur calibrate {} --data {}/labels/{}.jsonl"
        return {
            "name": self.run.resolve().name, "report": (self.run / "report.html").is_file(),
            "facets": self.index.facets({}), "agreement": self.labels.agreement(),
            "kinds": {kind: list(values) for kind, values in KINDS.items()},
            "calibrate": {kind: command.format(words, self.run, kind) for kind, words in CALIBRATE.items()},
        }  # fmt: skip

    def _traces(self, request: web.Request) -> dict[str, Any]:
        """A page of the list, with counts of filters and the draw where they are asked for."""
        query, limit = request.query, min(PAGE, max(1, int(request.query.get("limit", "50"))))
        offset = max(0, int(query["offset"])) if "offset" in query else None
        without = self.labels.ids() if query.get("unlabelled") else ()
        page = self.index.search(query, without=without, offset=offset, limit=limit)
        if query.get("facets"):
            page["facets"] = self.index.facets(query, without=without)
            if query.get("order") == "random":
                strata = self.index.strata(query)
                page["draw"] = {"bands": {s.band: s.size for s in strata}, "widths": [*widths(strata).items()]}
        for row in page["rows"]:
            row |= {"head": visible(row["head"]), "labelled": sorted(self.labels.of(row["id"]))}
        return page

    def _trace(self, request: web.Request) -> dict[str, Any]:
        row, trace = self._asked(request)
        prompt, (verdicts, findings), siblings = trace.prompt, self.index.notes(trace.id), self.index.siblings(row)
        findings = sorted(findings, key=lambda finding: PATTERNS.index(finding.pattern))
        texts, more = passages(trace, findings, None if request.query.get("all") else SHOWN)
        return {
            "row": row, "id": trace.id, "model": trace.model, "outcome": trace.outcome, "intent": prompt.intent,
            "category": prompt.category, "source": prompt.source, "attack": prompt.attack, "gold": prompt.gold,
            "prompt": visible(prompt.text), "question": visible(prompt.question) * (prompt.question != prompt.text),
            "tokens": trace.tokens_out, "notes": trace.notes, "texts": texts, "more": more, "siblings": siblings,
            "verdicts": [asdict(v) | {"reason": visible(v.reason), "raw": visible(v.raw or "")[:4_000]}
                         for v in verdicts],
            "findings": [{"pattern": f.pattern, "present": f.present, "reason": visible(f.reason)} for f in findings],
            "labels": self.labels.of(trace.id),
        }  # fmt: skip

    async def _label(self, request: web.Request) -> dict[str, Any]:
        if request.content_type != "application/json" or "Origin" not in request.headers:
            raise web.HTTPForbidden
        row, trace = self._asked(request)
        body = await request.json()
        by = str(body.get("by") or "").encode(errors="replace").decode().strip()[:60]
        if not by:
            raise UserError("a label needs the name of the person who gives it")
        drawn = self.index.strata(dict(parse_qsl(str(body.get("asked") or ""))), row=row)
        self.labels.put(
            trace, kind=str(body["kind"]), value=body.get("value"), by=by, verdicts=self.index.notes(trace.id)[0],
            drawn=drawn[0][:2] if drawn else None,
        )  # fmt: skip
        return self.labels.of(trace.id)


async def serve(run: Path, *, port: int = 0, ready: Any = None) -> None:
    """Serve a run's viewer on the loopback interface until cancelled; `ready` is called with the URL."""
    viewer = Viewer(run)
    runner = web.AppRunner(viewer.app(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        bound = runner.addresses[0][1]
        viewer.hosts = frozenset({f"127.0.0.1:{bound}", f"localhost:{bound}"})
        threading.Thread(target=viewer.index.fill, daemon=True).start()
        if ready is not None:
            ready(f"http://127.0.0.1:{bound}/{viewer.token}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
