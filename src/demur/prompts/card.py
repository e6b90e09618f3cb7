"""The card of a published data set: what is in it, where it came from, what it was compared with, and what it must not be used for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

import demur
from demur.records import Example

LICENCES = {
    "star1": ("UCSC-VLAA/STAR-1", "Apache-2.0"),
    "star-1": ("UCSC-VLAA/STAR-1", "Apache-2.0"),
    "lrm_safety_study": ("thu-coai/LRM-Safety-Study", "MIT"),
    "math500": ("HuggingFaceH4/MATH-500", "MIT"),
    "math-500": ("HuggingFaceH4/MATH-500", "MIT"),
    "gsm8k": ("openai/gsm8k", "MIT"),
    "openr1-math": ("open-r1/OpenR1-Math-220k", "Apache-2.0"),
    "openthoughts": ("open-thoughts/OpenThoughts-114k", "Apache-2.0"),
    "s1k": ("simplescaling/s1K", "MIT"),
    "advbench": ("AdvBench (llm-attacks)", "MIT"),
    "harmbench": ("HarmBench", "MIT"),
    "safebench": ("SafeBench (FigStep)", "MIT"),
    "xstest": ("XSTest (paul-rottger/exaggerated-safety)", "CC-BY-4.0"),
    "mini": ("demur's miniature world, generated", "Apache-2.0"),
}
"""Beginning of a file's or source's name -> where it comes from and its licence. A share's own `licence` goes first."""
FIELDS = {
    "id": "hash of the row's text and share",
    "messages": "the conversation in chat form: the user's turn and the reply, tags included",
    "prompt": "what the user says, wrapper included",
    "thinking": "the reasoning; empty where the format has none",
    "answer": "the reply after the reasoning",
    "parts": "the pieces of the conversation and whether loss falls on each (`train`)",
    "share": "the named share of the mix",
    "intent": "harmful, borderline, benign, maths or code",
    "question": "the bare question, where the prompt wraps one",
    "category": "the source's own class",
    "source": "the set that the prompt is from",
    "attack": "how the question was wrapped",
    "strategy": "the distillation strategy",
    "model": "who wrote the reply: a teacher, or the file it was read from",
    "repairs": "what was mended",
    "cluster": "rows that are not independent share one",
    "prompt_id": "hash of the prompt",
    "trace_id": "hash of the trace",
}
NOTICE = (
    "This data set holds requests for harmful things, published so that models learn to decline them. The replies were "
    "filtered, not checked by hand one by one; a reasoning text may name what it declines. Use it to make models safer or to study "
    "that; do not train a model to comply with these prompts, and do not show them to people unprepared."
)


class Split(NamedTuple):
    """One split of one configuration."""

    config: str
    split: str
    examples: Sequence[Example]


def harmful(examples: Iterable[Example]) -> bool:
    """Whether rows hold harmful requests, as far as they say; one that does not say, in a safety share, counts."""
    return any(
        example.origin.intent == "harmful" or (example.origin.intent is None and example.share.startswith("safety"))
        for example in examples
    )


def card(
    name: str, splits: Sequence[Split], *, settings: Mapping[str, Any], certificates: Mapping[str, Mapping[str, Any]]
) -> str:
    """The whole README.md, with the metadata that the hub reads on top.

    Args:
        name: a title.
        splits: all splits of all configurations.
        settings: configuration -> settings of the mix that made it.
        certificates: configuration -> its contamination certificate as plain data.
    """
    examples = [example for split in splits for example in split.examples]
    provenance = _provenance(examples, settings)
    head = {
        "pretty_name": name,
        "license": _licence({licence for _, _, licence in provenance}),
        "language": ["en"],
        "task_categories": ["text-generation"],
        "tags": ["safety", "reasoning", "refusal", "distillation", "demur"],
        "size_categories": [_size(len(examples))],
        "configs": _configs(splits),
    }
    if harmful(examples):
        head["tags"] = [*head["tags"], "not-for-all-audiences"]
        head["extra_gated_prompt"] = NOTICE
    blocks = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"> **Harmful content.** {NOTICE}" if harmful(examples) else "",
        f"Made with demur {demur.__version__}: training rows for reasoning models, "
        "with thinking and answer apart and the place of the loss in the data.",
        "## RecordFile",
        _table(("configuration", "split", "rows"), [(s.config, s.split, len(s.examples)) for s in splits]),
        *[_counts(title, key, examples) for title, key in _VIEWS.items()],
        "## Sources and licences",
        _table(("read from", "origin", "licence", "rows"), [(*said, rows) for said, rows in provenance.most_common()]),
        "## Fields",
        _table(("field", "meaning"), list(FIELDS.items())),
        "The Parquet files hold these fields; the JSON Lines files hold the same rows as demur's own records.",
        "## Contamination",
        *[_certified(config, certificates.get(config)) for config in dict.fromkeys(s.config for s in splits)],
        "## Settings",
        f"```yaml\n{yaml.safe_dump(_plain(settings), sort_keys=False)}```" if settings else "Not recorded.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


_VIEWS = {
    "share": lambda e: e.share,
    "intent": lambda e: e.origin.intent or "not stated",
    "strategy": lambda e: e.origin.strategy or "none",
    "written by": lambda e: e.origin.model or "not stated",
}


def _counts(title: str, key: Any, examples: Sequence[Example]) -> str:
    return _table((title, "rows"), Counter(map(key, examples)).most_common())


def _provenance(examples: Sequence[Example], settings: Mapping[str, Any]) -> Counter[tuple[str, str, str]]:
    """RecordFile by the file or source they are from, its origin and its licence."""
    stated = {
        share: options["licence"]
        for made in settings.values()
        for share, options in made.get("shares", {}).items()
        if options.get("licence")
    }
    found: Counter[tuple[str, str, str]] = Counter()
    for example in examples:
        origin = example.origin
        file = origin.model.removeprefix("file:") if origin.model.startswith("file:") else origin.source or "not stated"
        start = next((start for start in LICENCES if file.lower().startswith(start)), None)
        name, licence = LICENCES[start] if start else (file, "not stated")
        found[file, name, stated.get(example.share, licence)] += 1
    return found


def _licence(licences: set[str]) -> str:
    """What stands for the whole: the one licence, or `other` when there are several or none was stated."""
    return licences.pop().lower() if len(licences) == 1 and "not stated" not in licences else "other"


def _plain(settings: Any) -> Any:
    """Settings without what was not set, and without anybody's folders."""
    if isinstance(settings, Mapping):
        kept = {key: value for key, value in settings.items() if value not in (None, "")}
        return {key: value.rsplit("/", 1)[-1] if key == "file" else _plain(value) for key, value in kept.items()}
    return settings


def _size(count: int) -> str:
    limits = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for limit, name in limits if count < limit), "1M<n<10M")


def _configs(splits: Sequence[Split]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(split.config for split in splits))
    return [
        {
            "config_name": name,
            "data_files": [
                {"split": s.split, "path": f"data/{s.config}/{s.split}.parquet"} for s in splits if s.config == name
            ],
        }
        for name in names
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; what a cell holds cannot break it."""

    def line(cells: Sequence[Any]) -> str:
        texts = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])


def _certified(config: str, certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return f"The rows of `{config}` were not compared with benchmarks; `demur check contamination --examples …` does it."
    compared = [
        (one["bench"], one["prompts"], len(one["held"]), one["rows"], one["prompts_hash"])
        for one in certificate["compared"]
    ]
    removed = certificate.get("removed", 0)
    said = (
        f"`{config}`: {certificate['rows']:,} rows (ids hash to `{certificate['rows_hash']}`) were compared with the prompts below: equal "
        f"after normalisation, {certificate['coverage']:.0%} of a prompt by words weighted by rarity, or {certificate['similarity']:.0%} "
        f"alike. {f'{removed:,} rows were taken out.' if removed else 'No row was taken out.'}"
    )
    columns = ("benchmark", "prompts", "held by some row", "rows", "hash of the prompts")
    return f"{said}\n\n{_table(columns, compared)}"
