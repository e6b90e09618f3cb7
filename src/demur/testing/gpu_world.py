"""A simulated GPU machine: cards, vLLM, hosted models and training as doubles that refuse what the real ones refuse.

    python -m demur.testing.gpu_world studies/paper_v2.yaml --gpus 8x80 --rows 40 --data-dir data

runs a study on a few rows to its report, then prints which servers started, the memory held on the cards and the requests.
`nvidia-smi` and `vllm` are programs on PATH, weights are configurations in a hub cache, every URL leads to this process, and
missing files are generated in their public form. `--plan` prints what `demur plan` shows for the full study on these cards.
`--on ray --nodes 2` runs on two such machines, as in docs/cluster.md. `--slow target=0.1` makes a tenth of the target's
replies slow, and `--cut 0.05` truncates one reply in twenty.
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
"""Model -> the fields of its config.json that determine its size."""
SLOW = 0.5  # Tokens per second of a slow reply: a tenth of the default `least_speed`


class Report(NamedTuple):
    """What happened in a world."""

    starts: list[dict[str, Any]]  # Log lines of servers that started
    ends: list[dict[str, Any]]  # And of servers that ended
    refused: list[str]  # Why servers did not start
    peak: list[float]  # Most memory held on each card, in GiB
    held: dict[str, Any]  # Memory held now, by process; empty after a run
    asked: dict[str, int]  # Requests by model


class World(contextlib.ExitStack):
    """Cards of the given sizes in GB, programs, a hub and APIs in a folder, for the duration of a `with` block."""

    def __init__(self, folder: Path, cards: list[float], **shares: Mapping[str, float]) -> None:
        """`shares`: `slow` and `cut`, each a mapping from the part that a model plays ("" is every part) to a share of replies."""
        super().__init__()
        self.folder, self.cards, self.shares = folder.resolve(), cards, shares
        self.asked, self._counting = Counter[str](), threading.Lock()
        self.parts: defaultdict[str, set[str]] = defaultdict(set)  # Model -> the parts it plays
        self.hub = self.folder / "hub"
        self.machines: list[Path] = []

    def __enter__(self) -> Self:
        server = self.enter_context(vllm.Server("127.0.0.1", 0, self.answer))
        self.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        variables: dict[str, str | None] = {"DEMUR_WORLD_SPEAKER": f"{self.url}/speak", "DEMUR_VLLM": None}
        variables |= self.machine(self.folder) | {"HF_HUB_CACHE": str(self.hub), "HF_HUB_OFFLINE": "1"}
        self.enter_context(_environment(variables))
        sizes.devices.cache_clear()
        self.callback(sizes.devices.cache_clear)
        return self

    def machine(self, folder: Path) -> dict[str, str]:
        """Set up a machine with these cards; returns environment variables for its processes."""
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        ledger = {"cards": self.cards, "held": {}, "peak": [0.0] * len(self.cards)}
        atomic_write(folder / "ledger.json", json.dumps(ledger))
        programs = {"nvidia-smi": "".join(f"echo 'NVIDIA Double, {card * 1024:.0f}'\n" for card in self.cards)}
        programs["vllm"] = f'exec "{sys.executable}" -S -E "{vllm.__file__}" "$@"\n'
        for name, body in programs.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/sh\n{body}")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.machines.append(folder)
        return {"DEMUR_WORLD": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def weights(self, name: str, revision: str = "") -> Path:
        """Put a model into the hub's cache: configuration, tokenizer, template and an empty file of weights; returns its folder."""
        if name not in CONFIGS:
            raise UserError(f"{name} is unknown to the GPU world; add it to demur/testing/gpu_world.yaml")
        top = self.hub / f"models--{name.replace('/', '--')}"
        folder = top / "snapshots" / (revision or "0" * 40)
        if not folder.exists():
            shutil.copytree(_tokenizer(), folder)
            atomic_write(folder / "config.json", json.dumps(CONFIGS[name] | {"_name_or_path": name}))
            if "R1" not in name:  # only R1's template opens the thinking block
                atomic_write(folder / "chat_template.jinja", TEMPLATE.replace(f"{thinking.OPEN}\\n", ""))
            (folder / "model.safetensors").write_bytes(b"")
            (top / "refs").mkdir(exist_ok=True)
            (top / "refs" / "main").write_text(folder.name)
        return folder

    def prepared(self, study: Study, *, rows: int, up: Mapping[str, Any] = MappingProxyType({})) -> Resolved:
        """The study with few rows, its URLs leading here and its weights in the hub's cache; models in `up` are served already."""
        data = small.reduced(study, rows=rows, scratch=self.folder / "made")
        for model in data.get("models", {}).values():
            self._redirect(model)
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

    def _redirect(self, model: dict[str, Any]) -> None:
        """Put a model's weights into the hub's cache, or lead its URL here; the environment variables that it names are set."""
        if "hub" in model:
            self.weights(model["hub"], model.get("revision", ""))
        if "url" in model:
            variables = [model.get("key_env", ""), *(url[1:] for url in model["url"] if url.startswith("$"))]
            self.enter_context(_environment(dict.fromkeys(filter(None, variables), f"{self.url}/v1")))
            model["url"] = f"{self.url}/v1"

    def report(self) -> Report:
        """What has happened so far, on all machines."""
        logs = [machine / "log.jsonl" for machine in self.machines]
        lines = [json.loads(line) for log in logs if log.exists() for line in log.read_text().splitlines()]
        events = {name: [line for line in lines if line["event"] == name] for name in ("start", "end", "refused")}
        held, peak = dict[str, Any](), list[float]()
        for machine in self.machines:
            with vllm.ledger(machine) as data:
                held, peak = held | data["held"], peak + [round(value, 2) for value in data["peak"]]
        refused = [line["why"] for line in events["refused"]]
        return Report(events["start"], events["end"], refused, peak, held, dict(self.asked))

    def answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and body for a request: from a `vllm` double that needs its model's reply, or from a client of a hosted model."""
        if path == "/speak":
            return 200, self.served_reply(Path(body["folder"]), body["body"])
        if why := players.refusal(body["model"], body):
            return 400, {"error": {"message": why, "type": "invalid_request_error", "code": "unsupported_value"}}
        reply = self._reply(body["model"], {}, body)
        time.sleep(reply.pop("seconds"))
        return 200, reply

    def served_reply(self, folder: Path, body: dict[str, Any]) -> dict[str, Any]:
        """The reply of a served model, with the `seconds` that it takes, or an `error`."""
        config = json.loads((folder / "config.json").read_text())
        if body.get("continue_final_message"):
            from transformers.utils.chat_template_utils import render_jinja_template

            template = (folder / "chat_template.jinja").read_text()
            switches = {"continue_final_message": True, "add_generation_prompt": False}
            try:
                render_jinja_template(
                    [body["messages"]], chat_template=template, bos_token="", eos_token="", **switches
                )
            except ValueError as error:  # transformers itself cannot continue the last turn
                return {"error": str(error)}
        return self._reply(config["_name_or_path"], config, body)

    def _reply(self, model: str, config: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        """A reply in OpenAI's format, with the `seconds` that it takes."""
        with self._counting:
            self.asked[model] += 1
        request, begun = request_of(body, begun=bool(body.get("continue_final_message")))
        text, finish, count = run_script(players.player(model, config), request)
        if self._strikes("cut", model, body):
            text, finish, count = text[: len(text) // 2], "length", count // 2
        if "R1" in model and config and not begun:
            text = text.removeprefix(thinking.OPEN).lstrip("\n")  # its template has opened the thinking
        # A hosted R1 returns its thinking in a separate field, as DeepSeek's API and vLLM's parser do.
        separate = "reasoning_content" if not config and "r1" in model.lower() else ""
        seconds = count / SLOW if self._strikes("slow", model, body) else 0.0
        return reply_of(request, text, finish, count, body=body, reasoning_field=separate) | {"seconds": seconds}

    def _strikes(self, fault: str, model: str, body: dict[str, Any]) -> bool:
        """Whether a fault strikes a reply; decided by the hash of its request, so that a retry meets the same fault."""
        parts = {"", *self.parts.get(model, ())}
        share = max((value for part, value in self.shares.get(fault, {}).items() if part in parts), default=0.0)
        return scripts.share(json.dumps([fault, body], sort_keys=True)) < share


def _tokenizer() -> Path:
    """The folder of a byte-level tokenizer with an R1-like template, written once."""
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
    """Environment variables set (or, with `None`, unset) for the duration of a block, with an offline hub."""
    from huggingface_hub import constants

    hub = changes.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
    offline = mock.patch.object(constants, "HF_HUB_OFFLINE", True)
    with mock.patch.dict(os.environ), mock.patch.object(constants, "HF_HUB_CACHE", hub), offline:
        for name, value in changes.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        yield


def cards_of(text: str) -> list[float]:
    """The sizes of cards in GB from a text: `8x80` is eight cards of 80 GB."""
    count, _, size = text.partition("x")
    if not (count.isdigit() and size.isdigit()):
        raise UserError(f"--gpus {text}: write COUNTxGB, such as 8x80.")
    return [float(size)] * int(count)


def shares_of(items: list[str]) -> dict[str, float]:
    """Part -> share, from texts such as `target=0.1`, or `0.1` for every part."""
    try:
        return {part: float(share) for part, _, share in (item.rpartition("=") for item in items)}
    except ValueError:
        raise UserError(f"{', '.join(items)}: write SHARE, or PART=SHARE such as target=0.1.") from None


@contextlib.contextmanager
def cluster(world: World, study: Study, nodes: int) -> Iterator[dict[str, Any]]:
    """A Ray cluster of such machines. The last cards of this one serve the judges of all stages; yields those models by name."""
    import ray
    from ray.cluster_utils import Cluster

    judges = dict.fromkeys(name for use in study.bench if use.judge for name in use.judge.models)
    for model in study.models.values():  # Ray's workers get the environment variables that are set before it starts
        world._redirect(model.model_dump(mode="json", exclude_unset=True))
    left, up = len(world.cards), dict[str, Any]()
    with _environment({"RAY_memory_monitor_refresh_ms": "0"}), contextlib.ExitStack() as stack:
        for name in judges:
            model = study.models[name]
            if isinstance(model, Served):
                left -= 1
                remote = stack.enter_context(served(model.model_copy(update={"devices": (left,)})))
                up[name] = remote.model_dump(mode="json", exclude_unset=True)
        head = {"num_cpus": 2, "num_gpus": left, "include_dashboard": False}
        ray_cluster = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(ray_cluster.shutdown)
        for number in range(1, nodes):
            environment = world.machine(world.folder / f"node-{number}")
            ray_cluster.add_node(num_cpus=2, num_gpus=len(world.cards), env_vars=environment)
        ray.init(address=ray_cluster.address, log_to_driver=False)
        stack.callback(ray.shutdown)
        yield up


def main(argv: list[str] | None = None) -> None:
    """Run a study in a world and print what happened there; exits as demur does."""
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
    args = parser.parse_args(argv)
    out = args.out or Path(tempfile.mkdtemp(prefix="demur-gpu-world-"))
    sets = [*args.set, *([f"data_dir={args.data_dir}"] if args.data_dir else [])]
    try:
        loaded = read(args.study, sets=sets)
        loaded.problems.check()
        study = loaded.study
        assert study is not None
        shares = {"slow": shares_of(args.slow), "cut": shares_of(args.cut)}
        with World(out / "world", cards_of(args.gpus), **shares) as world:
            if args.plan:
                world.prepared(study, rows=args.rows)
                flags = [word for item in sets for word in ("--set", item)]
                demur(["plan", str(args.study), "--out", str(out / "run"), *flags])  # exits
            with contextlib.ExitStack() as stack:
                up = stack.enter_context(cluster(world, study, args.nodes)) if args.on == "ray" else {}
                run_study(world.prepared(study, rows=args.rows, up=up), out=out / "run", on=args.on)
            report = world.report()
    except DemurError as error:
        sys.exit(str(error))
    lines = [f"started {line['model']} on cards {line['cards']}, {line['share']} of each" for line in report.starts]
    lines += [f"most memory held on each card, in GiB: {report.peak}", f"requests: {report.asked}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
