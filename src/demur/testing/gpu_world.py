"""A GPU world in a box: cards, vLLM, hosted models and training as doubles that refuse what the real ones refuse.

    python -m demur.testing.gpu_world studies/paper_v2.yaml --gpus 8x80 --rows 40 --data-dir data

runs a study to its report, small, and then says what the world saw: starts, cards held, requests. `nvidia-smi` and `vllm` are
programs on PATH; weights are configurations in a hub cache; every URL leads here. Files that lack are made in their public form.
`--plan` prints what `demur plan` says on these cards of the study at its full size; `--on ray --nodes 2` runs it on two machines
of such cards, as docs/cluster.md says; `--slow target=0.1` and `--cut 0.05` make shares of the replies slow or truncated, of a part or of all.
"""

import argparse
import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from unittest import mock

import yaml

from demur import thinking
from demur.errors import DemurError, UserError
from demur.models.config import Remote, Served
from demur.models.scripted import run_script
from demur.models.vllm import served
from demur.pipeline import sizes
from demur.pipeline.dag import ordered
from demur.pipeline.resolve import Resolved, make
from demur.pipeline.study import Study, read
from demur.records import digest
from demur.storage.artifacts import atomic_write
from demur.testing import players, scripts, small, vllm
from demur.testing.base import TEMPLATE, make_tokenizer
from demur.testing.server import reply_of, request_of

CONFIGS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("gpu_world.yaml").read_text())["models"]
"""What the config.json of these models says of their size."""
SLOW = 0.5  # Tokens a second of a slow reply: a tenth of the least speed that a model is declared with by default


class Report(NamedTuple):
    """What a world saw."""

    starts: list[dict[str, Any]]
    ends: list[dict[str, Any]]
    refused: list[str]
    peak: list[float]  # GiB that were held at most, a card
    held: dict[str, Any]  # What is held now, by process; nothing, after a run
    asked: dict[str, int]  # Requests by model


class World(contextlib.ExitStack):
    """Cards, programs, a hub and APIs, in a folder, for as long as the block lasts."""

    def __init__(self, folder: Path, cards: list[float], **shares: Mapping[str, float]) -> None:
        """`shares`: `slow` and `cut`, each the share of replies by the part that a model plays; "" is every part."""
        super().__init__()
        self.folder, self.cards, self.shares = folder.resolve(), cards, shares
        self.asked, self._counting = Counter[str](), threading.Lock()
        self.parts: defaultdict[str, set[str]] = defaultdict(set)  # What each model plays, by its name
        self.hub = self.folder / "hub"
        self.machines: list[Path] = []

    def __enter__(self) -> Self:
        server = self.enter_context(vllm.Server("127.0.0.1", 0, self.answer))
        self.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        own: dict[str, str | None] = {"DEMUR_WORLD_SPEAKER": f"{self.url}/speak", "DEMUR_VLLM": None}
        own |= self.machine(self.folder) | {"HF_HUB_CACHE": str(self.hub), "HF_HUB_OFFLINE": "1"}
        self.enter_context(_environment(own))
        sizes.devices.cache_clear()
        self.callback(sizes.devices.cache_clear)
        return self

    def machine(self, folder: Path) -> dict[str, str]:
        """A machine with such cards of its own, as the environment of its processes."""
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        atomic_write(
            folder / "ledger.json", json.dumps({"cards": self.cards, "held": {}, "peak": [0.0] * len(self.cards)})
        )
        programs = {"nvidia-smi": "".join(f"echo 'NVIDIA Double, {card * 1024:.0f}'\n" for card in self.cards)}
        programs["vllm"] = f'exec "{sys.executable}" -S -E "{vllm.__file__}" "$@"\n'
        for name, body in programs.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/sh\n{body}")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.machines.append(folder)
        return {"DEMUR_WORLD": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def weights(self, name: str, revision: str = "") -> Path:
        """A model in the hub's cache: configuration, tokenizer and template, and weights that weigh nothing."""
        if name not in CONFIGS:
            raise UserError(f"{name}: the GPU world knows no such model; add it to demur/testing/gpu_world.yaml")
        top = self.hub / f"models--{name.replace('/', '--')}"
        folder = top / "snapshots" / (revision or "0" * 40)
        if not folder.exists():
            shutil.copytree(_tokenizer(), folder)
            atomic_write(folder / "config.json", json.dumps(CONFIGS[name] | {"_name_or_path": name}))
            if "R1" not in name:  # whose template opens the thinking
                atomic_write(folder / "chat_template.jinja", TEMPLATE.replace(f"{thinking.OPEN}\\n", ""))
            (folder / "model.safetensors").write_bytes(b"")
            (top / "refs").mkdir(exist_ok=True)
            (top / "refs" / "main").write_text(folder.name)
        return folder

    def furnished(self, study: Study, *, rows: int, up: Mapping[str, Any] = MappingProxyType({})) -> Resolved:
        """A study as it is run here: small, its URLs leading here, its weights in the hub's cache; `up` are models that answer already."""
        data = small.reduced(study, rows=rows, made=self.folder / "made")
        for model in data.get("models", {}).values():
            self._led_here(model)
        arms = data.get("arms", {}).values()
        for base in {*study.bases, study.base, *(arm.get("base") for arm in arms)} & CONFIGS.keys():
            self.weights(base, study.revisions.get(base, ""))
        if study.arms and any(arm.trained for arm in study.arms.values()):
            data["train"] = data.get("train", {}) | {"stage": "demur.testing.players:TrainDouble"}
        data["stand_in"] = True
        data["models"] = data.get("models", {}) | up
        resolved = make(data, where=study.name)
        for stage in ordered(resolved.stages):
            for part, model in stage.models.items():
                name = model.model if isinstance(model, Remote) else model.weights_at
                self.parts[name].add("target" if part == "base" else part)
        return resolved

    def _led_here(self, model: dict[str, Any]) -> None:
        """Weights in the hub's cache, an address of this world, and what the environment is to hold."""
        if "hub" in model:
            self.weights(model["hub"], model.get("revision", ""))
        if "url" in model:
            named = [model.get("key_env", ""), *(url[1:] for url in model["url"] if url.startswith("$"))]
            self.enter_context(_environment(dict.fromkeys(filter(None, named), f"{self.url}/v1")))
            model["url"] = f"{self.url}/v1"

    def report(self) -> Report:
        """What it saw until now, of all machines."""
        logs = [machine / "log.jsonl" for machine in self.machines]
        lines = [json.loads(line) for log in logs if log.exists() for line in log.read_text().splitlines()]
        by = {name: [line for line in lines if line["event"] == name] for name in ("start", "end", "refused")}
        held, peak = dict[str, Any](), list[float]()
        for machine in self.machines:
            with vllm.ledger(machine) as data:
                held, peak = held | data["held"], peak + [round(value, 2) for value in data["peak"]]
        return Report(by["start"], by["end"], [line["why"] for line in by["refused"]], peak, held, dict(self.asked))

    def answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """What a model says, with the seconds that it takes: a served one to the double of its server, a hosted one to whoever asks."""
        if path == "/speak":
            return 200, self.spoke(Path(body["folder"]), body["body"])
        if why := players.refusal(body["model"], body):
            return 400, {"error": {"message": why, "type": "invalid_request_error", "code": "unsupported_value"}}
        reply = self._reply(body["model"], {}, body)
        time.sleep(reply.pop("seconds"))
        return 200, reply

    def spoke(self, folder: Path, body: dict[str, Any]) -> dict[str, Any]:
        """What a served model says."""
        config = json.loads((folder / "config.json").read_text())
        if body.get("continue_final_message") and (why := self._unrendered(folder, body)):
            return {"error": why}
        return self._reply(config["_name_or_path"], config, body)

    def _unrendered(self, folder: Path, body: dict[str, Any]) -> str:
        """Why transformers' own code cannot go on with the last turn; empty: it can."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = (folder / "chat_template.jinja").read_text()
        try:
            render_jinja_template(
                [body["messages"]], chat_template=template, continue_final_message=True, add_generation_prompt=False,
                bos_token="", eos_token="",
            )  # fmt: skip
        except ValueError as error:
            return str(error)
        return ""

    def _reply(self, model: str, config: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        """A reply, with the seconds that it takes to be written."""
        with self._counting:
            self.asked[model] += 1
        request, begun = request_of(body, begun=bool(body.get("continue_final_message")))
        text, finish, count = run_script(players.player(model, config), request)
        if self._strikes("cut", model, body):
            text, finish, count = text[: len(text) // 2], "length", count // 2
        if "R1" in model and config and not begun:
            text = text.removeprefix(thinking.OPEN).lstrip("\n")  # its template opened the thinking
        # An API hands thinking back in a field of its own, as DeepSeek's and vLLM's parser do.
        apart = "reasoning_content" if not config and "r1" in model.lower() else ""
        seconds = count / SLOW if self._strikes("slow", model, body) else 0.0
        return reply_of(request, text, finish, count, body=body, apart=apart) | {"seconds": seconds}

    def _strikes(self, fault: str, model: str, body: dict[str, Any]) -> bool:
        """Whether a reply is slow or cut: by the hash of its request, so that a further try of it is, too."""
        parts = {"", *self.parts.get(model, ())}
        share = max((value for part, value in self.shares.get(fault, {}).items() if part in parts), default=0.0)
        return scripts.share(json.dumps([fault, body], sort_keys=True)) < share


def _tokenizer() -> Path:
    """A byte-level tokenizer with an R1-like template, saved once."""
    folder = Path(tempfile.gettempdir()) / f"demur-gpu-world-{os.getuid()}" / digest(TEMPLATE)
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            make_tokenizer().save_pretrained(scratch)
            atomic_write(Path(scratch) / "chat_template.jinja", TEMPLATE)
            atomic_write(Path(scratch) / "generation_config.json", json.dumps({"eos_token_id": 257}))
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
    return folder


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    from huggingface_hub import constants

    hub = changes.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
    offline = mock.patch.object(constants, "HF_HUB_OFFLINE", True)
    with mock.patch.dict(os.environ), mock.patch.object(constants, "HF_HUB_CACHE", hub), offline:
        for name, value in changes.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        yield


def cards_of(text: str) -> list[float]:
    """`8x80`: eight cards of 80 GB."""
    count, _, size = text.partition("x")
    if not (count.isdigit() and size.isdigit()):
        raise UserError(f"--gpus {text}: write COUNTxGB, such as 8x80.")
    return [float(size)] * int(count)


def shares_of(items: list[str]) -> dict[str, float]:
    """`0.1` (of every part) or `target=0.1`, several times."""
    try:
        return {part: float(share) for part, _, share in (item.rpartition("=") for item in items)}
    except ValueError:
        raise UserError(f"{', '.join(items)}: write SHARE, or PART=SHARE such as target=0.1.") from None


@contextlib.contextmanager
def cluster(world: World, study: Study, nodes: int) -> Iterator[dict[str, Any]]:
    """A Ray cluster of machines like this one, whose own last cards serve the judges of all stages (docs/cluster.md); yields these."""
    import ray
    from ray.cluster_utils import Cluster

    judges = dict.fromkeys(name for use in study.bench if use.judge for name in use.judge.models)
    # What the environment holds reaches the workers if it is there before Ray starts.
    for model in study.models.values():
        world._led_here(model.model_dump(mode="json", exclude_unset=True))
    left, up = len(world.cards), dict[str, Any]()
    with _environment({"RAY_memory_monitor_refresh_ms": "0"}), contextlib.ExitStack() as stack:
        for name in judges:
            model = study.models[name]
            if isinstance(model, Served):
                left -= 1
                remote = stack.enter_context(served(model.model_copy(update={"devices": (left,)})))
                up[name] = remote.model_dump(mode="json", exclude_unset=True)
        head = {"num_cpus": 2, "num_gpus": left, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(made.shutdown)
        for number in range(1, nodes):
            environment = world.machine(world.folder / f"node-{number}")
            made.add_node(num_cpus=2, num_gpus=len(world.cards), env_vars=environment)
        ray.init(address=made.address, log_to_driver=False)
        stack.callback(ray.shutdown)
        yield up


def main(argv: list[str] | None = None) -> None:
    """Run a study in a world, and say what was seen; exits as demur does."""
    from demur.cli import main as demur
    from demur.cli.runner import run_study

    parser = argparse.ArgumentParser(prog="python -m demur.testing.gpu_world")
    parser.add_argument("study", type=Path)
    parser.add_argument("--gpus", default="8x80")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--on", default="local", choices=["local", "ray"])
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--plan", action="store_true")
    for name in ("set", "slow", "cut"):
        parser.add_argument(f"--{name}", action="append", default=[])
    told = parser.parse_args(argv)
    out = told.out or Path(tempfile.mkdtemp(prefix="demur-gpu-world-"))
    try:
        loaded = read(told.study, sets=[*told.set, *([f"data_dir={told.data_dir}"] if told.data_dir else [])])
        loaded.problems.check()
        study = loaded.study
        assert study is not None
        shares = {"slow": shares_of(told.slow), "cut": shares_of(told.cut)}
        with World(out / "world", cards_of(told.gpus), **shares) as world:
            if told.plan:
                world.furnished(study, rows=told.rows)
                more = [word for item in told.set for word in ("--set", item)]
                more += ["--data-dir", str(told.data_dir)] if told.data_dir else []
                demur(["plan", str(told.study), "--out", str(out / "run"), *more])  # which ends here
            with contextlib.ExitStack() as stack:
                up = stack.enter_context(cluster(world, study, told.nodes)) if told.on == "ray" else {}
                run_study(world.furnished(study, rows=told.rows, up=up), out=out / "run", on=told.on)
            seen = world.report()
    except DemurError as error:
        sys.exit(str(error))
    lines = [f"started {one['model']} on cards {one['cards']} with {one['share']} of each" for one in seen.starts]
    lines += [f"most held of each card, GiB: {seen.peak}", f"requests: {seen.asked}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
