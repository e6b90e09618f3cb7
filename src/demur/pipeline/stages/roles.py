"""The models of a stage: opened when asked for, closed with the stage, counted under the stage's name.

A server for a checkpoint outlives its stage: it is kept until this process is asked for another, so that a checkpoint is
served once for all its benchmarks, which follow each other in the graph.
"""

from __future__ import annotations

import atexit
from contextlib import AsyncExitStack, ExitStack

from demur.interfaces import Model
from demur.models.config import ModelConfig
from demur.models.open import open_model
from demur.pipeline.run import Task
from demur.settings import validate
from demur.storage.reply_cache import ReplyCache


async def role(task: Task, name: str, journal: ReplyCache, stack: AsyncExitStack) -> Model | None:
    """The model that plays a role, or `None` when the study has none."""
    data = task.node.settings.get(name)
    if data is None:
        return None
    spec = validate(ModelConfig, data, where=f"role '{name}'")
    return await stack.enter_async_context(open_model(spec, journal=journal, label=f"{name}/{task.node.name}"))


async def target(task: Task, journal: ReplyCache, stack: AsyncExitStack) -> Model:
    """The model under test: a checkpoint that this study trained, a folder, or a role."""
    if "model" in task.inputs:
        spec = ModelConfig(path=str(task.inputs["model"].folder / "model"))
    elif "base" in task.files:
        data = task.node.settings.get("target") or {}
        spec = validate(ModelConfig, data | {"path": str(task.files["base"])}, where="target")
    else:
        spec = validate(ModelConfig, task.node.settings["target"], where="target")
    if (spec.path or spec.hub) and "serve" in task.node.settings:
        spec = _server.of(spec.model_copy(update={"serve": task.node.settings["serve"]}))
    return await stack.enter_async_context(open_model(spec, journal=journal, label=f"target/{task.node.name}"))


class _Server:
    """At most one server of this process, for as long as the same weights are asked for."""

    def __init__(self) -> None:
        self._of: ModelConfig | None = None
        self._remote: ModelConfig | None = None
        self._stack = ExitStack()

    def of(self, role: ModelConfig) -> ModelConfig:
        """The running server of a role; the one before is stopped.

        Raises:
            WorkError: it does not start; its log says why.
        """
        from demur.models.vllm import served

        if self._remote is None or self._of != role:
            self.stop()
            self._remote = self._stack.enter_context(served(role))
            self._of = role
            atexit.register(self.stop)
        return self._remote

    def stop(self) -> None:
        """End the server."""
        self._stack.close()
        self._of = self._remote = None


_server = _Server()
"""Of this process: workers live through many stages."""
