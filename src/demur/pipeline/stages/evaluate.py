"""Runs one benchmark under one attack against one model: traces, verdicts, failures, and the attack's own records."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from pydantic import Field, field_serializer, model_validator

from demur import attack as attacks
from demur.attack import NO_ATTACK, PLAYED_BY, AttackUse
from demur.attack.base import Attack
from demur.bench import get_bench, parse
from demur.bench.load import load_prompts, read_prompts
from demur.bench.spec import Bench
from demur.errors import UserError, plural
from demur.generate import ask_and_judge, in_order
from demur.interfaces import Ask, Model
from demur.judge.base import require, setup_of
from demur.models.config import Local
from demur.models.requires import Requires
from demur.models.sampling import SamplingSettings, preset
from demur.pipeline.stage import CHARACTERS, Context, Lack, Size, Stage, Tampered, Use, hub_needs, judging, sized
from demur.records import Part, Prompt, Sampling
from demur.repair.cut import Intervened
from demur.repair.settings import Intervention
from demur.settings import Strict, connection, identity_of, names
from demur.storage import hub

FILE = "attack_"  # How files that the attack reads are named here, in front of their own key


class BenchUse(Strict):
    """A benchmark as a study uses it. What is left out is as the benchmark's protocol says."""

    name: str = names("benchmark")
    attack: AttackUse = NO_ATTACK
    judge: Use | None = names("judge", None)  # Another judge than the protocol's, and the model that plays it
    part: Part | None = None  # Another part than the protocol's
    also: tuple[Part, ...] = ()  # Further parts that the same judge reads, such as `[thinking]`: both are then crossed
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0  # Which prompts, for a set that is generated
    samples: int | None = Field(default=None, ge=1)
    sampling: SamplingSettings = SamplingSettings()  # Sampling settings in which this study differs from the protocol
    data: str | None = None  # A local copy
    max_unscored: float = connection(0.05, ge=0, le=1)  # Share of replies on which the judge itself may fail

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`xstest` is short for `{name: xstest}`, `harmful=FILE` for a benchmark on a file of yours."""
        if isinstance(value, str):
            return parse(value)
        name = value.get("name") if isinstance(value, dict) else ""
        if isinstance(name, str) and Path(name.partition("=")[2]).suffix:
            return value | parse(name)
        return value

    @field_serializer("sampling")
    def _changes(self, sampling: SamplingSettings) -> dict[str, Any]:
        """Only what differs from the protocol."""
        return sampling.model_dump(exclude_none=True)

    @property
    def judge_kind(self) -> str:
        """The judge's kind: the study's, else the protocol's."""
        return self.judge.kind if self.judge else get_bench(self.name).judge

    def drawn(self) -> Sampling:
        """The protocol's sampling with the study's changes."""
        sampling = self.sampling.over(get_bench(self.name).sampling)
        return sampling if self.samples is None else replace(sampling, n=self.samples)


class EvaluateSettings(Strict):
    """Which arm, on what."""

    bench: BenchUse
    arm: str = "target"
    seed: int | None = None  # Of its training; `None`: it was not trained
    decoding: str | Intervention | None = None  # A defence by decoding alone
    tampered: Tampered | None = None  # How the arm was fine-tuned before, to see whether that undoes it
    serve: dict[str, Any] = {}  # How a trained model is served, {engine: vllm, …}; empty: in the stage's own process


class Evaluate(Stage[EvaluateSettings]):
    """Inputs: target (a stage that trained it). Models: target (or its base), judge, attacker, attack_judge. Files: data, attack."""

    kind = "evaluate"
    version = 2
    Settings = EvaluateSettings

    @property
    def use(self) -> BenchUse:
        return self.settings.bench

    async def run(self, context: Context) -> None:
        use, bench, sampling = self.use, get_bench(self.use.name), self._sampling()
        questions = self._questions(bench)
        if bench.hub and not {"data", "stand_in"} & self.files.keys():
            context.draft.summary["fetched"] = hub.told(bench.hub)
        target = await context.model("target")
        assert target is not None
        target.check(sampling)
        if isinstance(self.settings.decoding, Intervention):
            target = Intervened(target, self.settings.decoding)
        query = None if use.judge else bench.query
        parts = (use.part or (None if use.judge else bench.part), *use.also)
        parts = () if context.generating else parts
        readers = [await context.judge(use.judge_kind, part=part, query=query) for part in parts]
        attack = await self._attack(context, target)
        made = [prompt async for prompt in attack.attacked(questions)]
        place = {prompt.id: index for index, prompt in enumerate(questions)}
        attacked = sorted(made, key=lambda prompt: (place[prompt.parent or prompt.id], prompt.attack, prompt.id))
        asks = [request for prompt in attacked for request in attacks.requests(attack, prompt, sampling)]
        total, say = len(attacked) * sampling.n, context.progress
        flow = await ask_and_judge(target, asks, readers, progress=lambda done, _, remark: say(done, total, remark))
        if context.generating:
            return
        # What an attacker could not write a prompt for is a failure like any other.
        flow.failures.extend(attack.failures)
        asked = [prompt.id for prompt in (*attacked, *(failure.prompt for failure in attack.failures))]
        records: dict[str, Iterable[Any]] = in_order(flow, asked)._asdict() | attack.records
        context.draft.summary["filed_again"] = records.pop("filed_again")
        records["judges"] = [setup_of(reader) for reader in readers]
        if attack.conversations:
            records["turns"] = attack.conversations
            records["turn_verdicts"] = [v for reader in readers async for v in reader.verdicts(attack.conversations)]
        for name, rows in records.items():
            context.draft.write(name, rows)
        context.draft.line = plural(len(flow.traces), "trace")
        require(flow.verdicts, max_unscored=use.max_unscored, who=f"{bench.name}: the judge")

    def _sampling(self) -> Sampling:
        decoding, sampling = self.settings.decoding, self.use.drawn()
        return preset(decoding, sampling) if isinstance(decoding, str) else sampling

    def _questions(self, bench: Bench) -> list[Prompt]:
        """The benchmark's prompts, checked; or the rows that stand in for a release, which have nothing to be checked by."""
        if "stand_in" in self.files:
            return read_prompts(bench, self.files["stand_in"])[: self.use.limit]
        return _prompts(self.use.name, self.files.get("data"), self.use.limit, self.use.seed)

    async def _attack(self, context: Context, target: Model) -> Attack:
        models = {part: await context.model(player(part)) for part in self.use.attack.parts}
        played = {part: model for part, model in models.items() if model is not None}
        return attacks.open_attack(
            self.use.attack, files=self.attack_files(), target=target, models=played, progress=context.progress
        )

    def attack_files(self) -> dict[str, Path]:
        """What the attack reads, by its own keys."""
        return {key.removeprefix(FILE): path for key, path in self.files.items() if key.startswith(FILE)}

    def needs(self) -> list[Lack]:
        lacks = super().needs() + self.judge_needs(self.use.judge_kind) + self._attack_needs()
        bench, use, copy = get_bench(self.use.name), self.use, self.files.get("data")
        if copy or "stand_in" in self.files or bench.generated:
            fault = sized(_prompts, use.name, copy, use.limit, use.seed)[1] if copy and copy.exists() else ""
            return [*lacks, Lack("bench", fault)] if fault else lacks
        lacking = hub_needs("bench", None, bench.hub) if bench.hub else [Lack("bench", "no local copy")]
        how = f"Put {' or '.join(bench.files)} into a folder, and name that: --data-dir FOLDER."
        told = [f"{bench.name}: {lack.message.rstrip('.')}. {how}" for lack in lacking]
        return lacks + [lack._replace(message=text) for lack, text in zip(lacking, told, strict=True)]

    def _attack_needs(self) -> list[Lack]:
        """Models that its parts lack or that cannot play them, a target that takes no begun reply, files that are wrong."""
        name, lacks = self.use.attack.name, list[Lack]()
        for part in self.use.attack.parts:
            if player(part) not in self.models:
                how = f"--{player(part).replace('_', '-')}; in a study a model '{player(part)}', or one named beside its settings."
                lacks.append(Lack(player(part), f"attack '{name}' needs a model for its part '{part}': {how}", True))
        try:
            requires = attacks.make(self.use.attack, self.attack_files()).requires()
        except (UserError, KeyError) as error:  # a file that is not there was told where the stage was made
            return [*lacks, Lack("attack", str(error))] if isinstance(error, UserError) else lacks
        if self._sampling().prefill or isinstance(self.settings.decoding, Intervention):
            requires["target"] = Requires(prefill=True)
        for part, needed in requires.items():
            model = self.models.get(player(part))
            unmet = needed.unmet(model) if model is not None else []
            lacks += [Lack(player(part), f"{line} (attack '{name}')", True) for line in unmet]
        return lacks

    def size(self) -> Size:
        bench, use, copy = get_bench(self.use.name), self.use, self.files.get("stand_in") or self.files.get("data")
        why, size = "no copy is here", Size(0)
        if copy or not bench.hub:
            size, why = sized(_prompts, use.name, copy, use.limit, use.seed)
        most = min(filter(None, (use.limit, bench.count)), default=0)
        return size._replace(rows=most) if why else size

    def estimate(self) -> list[Ask]:
        asked, sampling, use = self.size(), self._sampling(), self.use
        try:
            attack = attacks.make(use.attack, self.attack_files())
        except (UserError, KeyError):  # told among the needs
            attack = attacks.make("none")
        replies = asked.rows * attack.each * sampling.n
        sent = asked.tokens + attack.longer // CHARACTERS
        twice = replies * (1 + isinstance(self.settings.decoding, Intervention))
        asks = [Ask("target", twice, twice * sent, twice * sampling.max_tokens)]
        readers = 1 + len(use.also)
        heard, own_limit = asked.rows * attack.heard, attack.sampling.get("target", sampling).max_tokens
        judged = Size((replies + heard) * readers, sent + max(sampling.max_tokens, own_limit))
        asks += judging(self, use.judge_kind, judged, readers=readers)
        return asks + [Ask(player(part), *rest) for part, *rest in attack.estimate(asked.rows, asked.tokens)]

    def readers(self) -> tuple[str, ...]:
        return ("judge",)

    def gpus(self) -> int:
        return super().gpus() + isinstance(self.models.get("target"), Local)

    def identity(self) -> dict[str, Any]:
        """Without the names of models and the places of files."""
        data, attack = super().identity(), self.use.attack
        data["bench"] |= {"attack": [attack.name, identity_of(attack.settings)]}
        data["bench"].pop("data")
        return data


def player(part: str) -> str:
    """The part of a stage by which a part of an attack is known: its judge is not the evaluation's."""
    return PLAYED_BY.get(part, part)


def _prompts(name: str, path: Path | None, limit: int | None, seed: int) -> list[Prompt]:
    """The prompts of a benchmark's copy, checked."""
    return load_prompts(get_bench(name), data=path, limit=limit, seed=seed)
