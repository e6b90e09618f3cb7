"""Runs one benchmark under one attack against one model: traces, verdicts, failures, and the attack's own records."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from pydantic import Field, field_serializer, model_validator

from demur import attack as attacks
from demur.attack import NO_ATTACK, PLAYED_BY, AttackUse
from demur.bench import get_bench, parse
from demur.bench.load import load_prompts, read_prompts
from demur.errors import UserError, plural
from demur.generate import ask_and_judge, in_order
from demur.interfaces import Ask
from demur.judge.base import require, setup_of
from demur.models.config import Local
from demur.models.requires import Requires
from demur.models.sampling import SamplingSettings, preset
from demur.pipeline.stage import CHARACTERS, Context, Lack, Size, Stage, Tampered, Use, hub_needs, judge_asks, size_of
from demur.records import Part, Prompt, Sampling
from demur.repair.cut import Intervened
from demur.repair.settings import Intervention
from demur.settings import Strict, connection, identity_of, names
from demur.storage import hub

FILE = "attack_"  # Prefix of the keys of an attack's files among those of the stage


class BenchUse(Strict):
    """A benchmark in a study. The defaults are those of the benchmark's protocol."""

    name: str = names("benchmark")
    attack: AttackUse = NO_ATTACK
    judge: Use | None = names("judge", None)  # Another judge than the protocol's, and the model that plays it
    part: Part | None = None  # Another part than the protocol's
    also: tuple[Part, ...] = ()  # More parts for the same judge, such as `[thinking]`; the report crosses the verdicts
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0  # Of the prompts of a generated benchmark
    samples: int | None = Field(default=None, ge=1)
    sampling: SamplingSettings = SamplingSettings()  # Changes to the sampling of the protocol
    data: str | None = None  # A local copy
    max_unscored: float = connection(0.05, ge=0, le=1)  # Share of replies on which the judge itself may fail

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`xstest` is short for `{name: xstest}`; `harmful=FILE` is a benchmark on a file of your own."""
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
        sampling = self.sampling.override(get_bench(self.name).sampling)
        return sampling if self.samples is None else replace(sampling, n=self.samples)


class EvaluateSettings(Strict):
    """A benchmark, and the arm that is measured on it."""

    bench: BenchUse
    arm: str = "target"
    seed: int | None = None  # Of its training; `None`: not trained
    decoding: str | Intervention | None = None  # A defence by decoding alone
    tampered: Tampered | None = None  # The fine-tuning that should undo the arm
    serve: dict[str, Any] = {}  # How a trained model is served, {engine: vllm, …}; empty: in the stage's own process


class Evaluate(Stage[EvaluateSettings]):
    """Inputs: target (a stage that trains it). Models: target (or its base), judge, attacker, attack_judge. Files: data, attack."""

    kind = "evaluate"
    version = 2
    Settings = EvaluateSettings

    @property
    def use(self) -> BenchUse:
        return self.settings.bench

    async def run(self, context: Context) -> None:
        use, bench, sampling = self.use, get_bench(self.use.name), self._sampling()
        if "stand_in" in self.files:  # rows in the place of a release, without a check against it
            questions = read_prompts(bench, self.files["stand_in"])[: use.limit]
        else:
            questions = _prompts(use.name, self.files.get("data"), use.limit, use.seed)
        if bench.hub and not {"data", "stand_in"} & self.files.keys():
            context.draft.summary["fetched"] = hub.provenance(bench.hub)
        target = await context.model("target")
        assert target is not None
        target.check(sampling)
        if isinstance(self.settings.decoding, Intervention):
            target = Intervened(target, self.settings.decoding)
        query = None if use.judge else bench.query
        parts = (use.part or (None if use.judge else bench.part), *use.also)
        parts = () if context.generating else parts
        readers = [await context.judge(use.judge_kind, part=part, query=query) for part in parts]
        players = [(part, await context.model(player(part))) for part in use.attack.parts]
        models = {part: model for part, model in players if model is not None}
        files, report = self.attack_files(), context.progress
        attack = attacks.open_attack(use.attack, files=files, target=target, models=models, progress=report)
        attacked = [prompt async for prompt in attack.attacked(questions)]
        place = {prompt.id: index for index, prompt in enumerate(questions)}
        attacked.sort(key=lambda prompt: (place[prompt.parent or prompt.id], prompt.attack, prompt.id))
        asks = [request for prompt in attacked for request in attacks.requests(attack, prompt, sampling)]
        total = len(attacked) * sampling.n
        flow = await ask_and_judge(target, asks, readers, progress=lambda done, _, remark: report(done, total, remark))
        if context.generating:
            return
        # A question for which the attacker wrote no prompt is a failure like any other.
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

    def attack_files(self) -> dict[str, Path]:
        """The files of the attack, by its own keys."""
        return {key.removeprefix(FILE): path for key, path in self.files.items() if key.startswith(FILE)}

    def needs(self) -> list[Lack]:
        lacks = super().needs() + self.judge_needs(self.use.judge_kind) + self._attack_needs()
        bench, use, copy = get_bench(self.use.name), self.use, self.files.get("data")
        if copy or "stand_in" in self.files or bench.generated:
            fault = size_of(_prompts, use.name, copy, use.limit, use.seed)[1] if copy and copy.exists() else ""
            return [*lacks, Lack("bench", fault)] if fault else lacks
        how = f"Put {' or '.join(bench.files)} into a folder, and name that: --data-dir FOLDER."
        for lack in hub_needs("bench", None, bench.hub) if bench.hub else [Lack("bench", "no local copy")]:
            lacks.append(lack._replace(message=f"{bench.name}: {lack.message.rstrip('.')}. {how}"))
        return lacks

    def _attack_needs(self) -> list[Lack]:
        """Parts without a model or with an unfit one, a target that cannot continue a begun reply, and wrong files."""
        name, lacks = self.use.attack.name, list[Lack]()
        for part in self.use.attack.parts:
            if player(part) not in self.models:
                how = f"--{player(part).replace('_', '-')}; in a study a model '{player(part)}', or one named beside its settings."
                lacks.append(Lack(player(part), f"attack '{name}' needs a model for its part '{part}': {how}", True))
        try:
            requires = attacks.make(self.use.attack, self.attack_files()).requires()
        except (UserError, KeyError) as error:  # KeyError: a missing file, which was reported as the stage was built
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
        size, unknown = Size(0), "no local copy"
        if copy or not bench.hub:
            size, unknown = size_of(_prompts, use.name, copy, use.limit, use.seed)
        most = min(filter(None, (use.limit, bench.count)), default=0)
        return size._replace(rows=most) if unknown else size

    def estimate(self) -> list[Ask]:
        asked, sampling, use = self.size(), self._sampling(), self.use
        try:
            attack = attacks.make(use.attack, self.attack_files())
        except (UserError, KeyError):  # which `needs` reports
            attack = attacks.make("none")
        replies = asked.rows * attack.max_prompts * sampling.n
        sent = asked.tokens + attack.max_added_chars // CHARACTERS
        requests = replies * (1 + isinstance(self.settings.decoding, Intervention))  # an interruption asks again
        asks = [Ask("target", requests, requests * sent, requests * sampling.max_tokens)]
        readers = 1 + len(use.also)
        turns, limit = asked.rows * attack.max_turns, attack.sampling.get("target", sampling).max_tokens
        judged = Size((replies + turns) * readers, sent + max(sampling.max_tokens, limit))
        asks += judge_asks(self, use.judge_kind, judged, readers=readers)
        return asks + [Ask(player(part), *rest) for part, *rest in attack.estimate(asked.rows, asked.tokens)]

    def readers(self) -> tuple[str, ...]:
        return ("judge",)

    def gpus(self) -> int:
        return super().gpus() + isinstance(self.models.get("target"), Local)

    def identity(self) -> dict[str, Any]:
        """Without the names of models and the paths of files."""
        data, attack = super().identity(), self.use.attack
        data["bench"] |= {"attack": [attack.name, identity_of(attack.settings)]}
        data["bench"].pop("data")
        return data


def player(part: str) -> str:
    """The stage's part for a part of an attack, whose judge is not that of the evaluation."""
    return PLAYED_BY.get(part, part)


def _prompts(name: str, path: Path | None, limit: int | None, seed: int) -> list[Prompt]:
    """The prompts of a benchmark's copy, checked against the release."""
    return load_prompts(get_bench(name), data=path, limit=limit, seed=seed)
