"""The trace viewer: a small server on this machine alone, and a page of plain JavaScript.

Traces hold harmful text and were written by models, so nobody else gets to see them and they get to do nothing: every
path begins with a random token, a foreign Host or Origin gets no answer, the page may load and send to itself only, and
text reaches it as text.
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
SHOWN = 100_000  # Characters of one text that are sent unless all is asked for
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
CALIBRATES = {"refusal": "refusal", "harm": "guard --detector NAME=MODEL", "patterns": "patterns"}
"""Kind of label -> what it calibrates."""
FILES = ("viewer.html", "viewer.js", "viewer.css")
OF_RUN = ("report.html", "results.csv")


class Viewer:
    """Answers the page's questions about one run."""

    def __init__(self, run: Path, *, token: str | None = None) -> None:
        self.run = run
        self.token = token or secrets.token_urlsafe(24)
        self.index = Index(run)
        self.labels = Labels(run)
        self.hosts: frozenset[str] = frozenset()

    def app(self) -> web.Application:
        """The web application; `hosts` must be set before it is asked anything."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            given = request.path.split("/", 2)[1]
            origin = request.headers.get("Origin")
            trusted = (
                request.host in self.hosts
                and secrets.compare_digest(given.encode(), self.token.encode())
                and (origin is None or origin in {f"http://{host}" for host in self.hosts})
                and request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
            )
            if not trusted:
                return web.Response(status=403, text="")
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text="")
            except Exception as error:  # whatever was asked: a number beyond SQLite's, a body that is a list, deep JSON
                response = web.json_response({"error": str(error)}, status=400)
            # The report brings a policy of its own, for its own script.
            own = request.path.endswith("/report.html")
            response.headers.update({k: v for k, v in HEADERS.items() if not (own and k == "Content-Security-Policy")})
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
        """The trace that a request is about."""
        row = int(request.match_info["row"])
        if (trace := self.index.trace(row)) is None:
            raise web.HTTPNotFound
        return row, trace

    def about(self) -> dict[str, Any]:
        """What there is to filter by and to label."""
        return {
            "name": self.run.resolve().name, "report": (self.run / "report.html").is_file(),
            "facets": self.index.facets({}), "agreement": self.labels.agreement(),
            "kinds": {kind: list(values) for kind, values in KINDS.items()},
            "calibrate": {kind: f"demur calibrate {verb} --data {self.run}/labels/{kind}.jsonl" for kind, verb in CALIBRATES.items()},
        }  # fmt: skip

    def _traces(self, request: web.Request) -> dict[str, Any]:
        ask = request.query
        offset, limit = int(ask["offset"]) if "offset" in ask else None, min(PAGE, max(1, int(ask.get("limit", "50"))))
        left = self.labels.ids() if ask.get("unlabelled") else ()
        found = self.index.search(ask, without=left, offset=None if offset is None else max(0, offset), limit=limit)
        if ask.get("facets"):
            found["facets"] = self.index.facets(ask, without=left)
            if ask.get("order") == "random":
                strata = self.index.strata(ask)
                found["draw"] = {"bands": {s.band: s.size for s in strata}, "widths": [*widths(strata).items()]}
        for row in found["rows"]:
            row |= {"head": visible(row["head"]), "labelled": sorted(self.labels.of(row["id"]))}
        return found

    def _trace(self, request: web.Request) -> dict[str, Any]:
        row, trace = self._asked(request)
        prompt, (verdicts, findings) = trace.prompt, self.index.notes(trace.id)
        findings = sorted(findings, key=lambda found: PATTERNS.index(found.pattern))
        texts, left = passages(trace, findings, None if request.query.get("all") else SHOWN)
        return {
            "row": row, "id": trace.id, "model": trace.model, "outcome": trace.outcome, "intent": prompt.intent,
            "category": prompt.category, "source": prompt.source, "attack": prompt.attack, "prompt": visible(prompt.text),
            "question": visible(prompt.question) if prompt.question != prompt.text else "",
            "gold": prompt.gold, "tokens": trace.tokens_out, "notes": trace.notes, "texts": texts, "more": left,
            "verdicts": [asdict(v) | {"reason": visible(v.reason), "raw": visible(v.raw or "")[:4_000]} for v in verdicts],
            "findings": [{"pattern": f.pattern, "present": f.present, "reason": visible(f.reason)} for f in findings],
            "siblings": self.index.siblings(row), "labels": self.labels.of(trace.id),
        }  # fmt: skip

    async def _label(self, request: web.Request) -> dict[str, Any]:
        if request.content_type != "application/json" or "Origin" not in request.headers:
            raise web.HTTPForbidden
        row, trace = self._asked(request)
        given = await request.json()
        by = str(given.get("by") or "").encode(errors="replace").decode().strip()[:60]
        if not by:
            raise UserError("say who labels")
        drawn = self.index.strata(dict(parse_qsl(str(given.get("asked") or ""))), row=row)
        self.labels.put(
            trace, kind=str(given["kind"]), value=given.get("value"), by=by, verdicts=self.index.notes(trace.id)[0],
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
