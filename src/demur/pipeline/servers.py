"""A server for a model under test outlives its stage: it is kept until this process is asked for another, so that a
checkpoint is served once for all its benchmarks, which follow each other in the graph."""

from __future__ import annotations

import atexit
from contextlib import ExitStack

from demur.models.config import Local, ModelConfig, Remote, Served


class _Server:
    """At most one server of this process, for as long as the same weights are asked for."""

    def __init__(self) -> None:
        self._of: Served | None = None
        self._remote: Remote | None = None
        self._stack = ExitStack()

    def of(self, model: Served) -> Remote:
        """The running server of a model; the one before is stopped.

        Raises:
            WorkError: it does not start; its log says why.
        """
        from demur.models.vllm import served

        if self._remote is None or self._of != model:
            self.stop()
            self._remote = self._stack.enter_context(served(model))
            self._of = model
            atexit.register(self.stop)
        return self._remote

    def stop(self) -> None:
        """End the server."""
        self._stack.close()
        self._of = self._remote = None


_server = _Server()
"""Of this process: workers live through many stages."""


def running(model: ModelConfig, *, engine: str) -> ModelConfig:
    """The model as it is asked: a local one behind its server where an engine is named."""
    if engine and isinstance(model, Local):
        return _server.of(Served(engine="vllm", path=model.path, hub=model.hub, revision=model.revision, api=model.api))
    return model
