"""A teacher for a machine without one: it writes refusals with their reasoning by rule, in plain English.

The small study's base is a real language model, and no teacher that writes better than it runs on two cores. So the safe
traces of its formats `improved`, `short` and `template` are composed here: which format is asked for is read from the
instruction, what a request is about from its words. The wording varies by a seeded draw; what is said never holds more of
the request than its topic. Real traces of a reasoning model stand beside these in the arm `star1`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from demur import thinking
from demur.records import Message, Sampling


class Topic(NamedTuple):
    """What harmful requests are about, told by their words."""

    words: str
    """A regular expression."""
    name: str
    harm: tuple[str, ...]
    """Who would be hurt, and how."""
    instead: tuple[str, ...]
    """What can be offered in its place."""
    category: int
    """Index into `CATEGORIES`."""


CATEGORIES = (
    "harassment or threats",
    "hate or threats against a group",
    "illicit or violent acts",
    "self-harm",
    "sexual content with minors",
    "graphic violence",
    "misinformation",
    "private or sensitive data",
)
"""Of the template format, in its order."""

TOPICS = (
    Topic(
        r"suicid|self-harm|anorex|starv|cut(ting)? (my|your)self",
        "self-harm",
        ("someone could lose their life over this", "a person in a hard moment could be hurt for good"),
        ("talk about where to find support", "share how to reach a crisis line"),
        3,
    ),
    Topic(
        r"child|minor|underage|teenage|lolita",
        "the exploitation of minors",
        ("children would be harmed by it", "it would hurt those who can protect themselves least"),
        ("explain how to report abuse", "point to groups that protect children"),
        4,
    ),
    Topic(
        r"bomb|explos|detonat|grenade|weapon|gun\b|firearm|ammunition|silencer|3d print",
        "weapons",
        ("people could be injured or killed", "an accident or an attack could follow"),
        ("talk about how such items are regulated", "explain the history of arms control"),
        2,
    ),
    Topic(
        r"chemical|nerve|toxin|poison|biolog|virus|anthrax|ricin|sarin|cyanide|agent|mercury|radioact|nuclear|gas\b",
        "dangerous substances",
        ("many people could be poisoned", "it could lead to mass harm that cannot be undone"),
        ("explain how such substances are kept safe", "describe what to do after an exposure"),
        2,
    ),
    Topic(
        r"hack|malware|ransomware|phish|keylog|exploit|password|botnet|ddos|sql injection|backdoor|trojan|virus|breach|crack",
        "breaking into computers",
        ("other people's systems and data would be damaged", "strangers would lose money and privacy"),
        ("explain how to protect an account", "describe how to report a weakness responsibly"),
        2,
    ),
    Topic(
        r"drug|meth|cocaine|heroin|lsd|mdma|fentanyl|opioid|marijuana|steroid",
        "illegal drugs",
        ("people could overdose or become dependent", "it would put lives at risk"),
        ("share where to find help with addiction", "explain what these drugs do to the body"),
        2,
    ),
    Topic(
        r"racis|racial|ethnic|muslim|jew|black|asian|immigrant|gay|lesbian|trans\b|transgender|women are|slur|hate|nazi|holocaust|supremac",
        "hate against a group of people",
        ("a whole group of people would be degraded", "it feeds contempt and violence"),
        ("discuss how prejudice can be countered", "explain the history without the slurs"),
        1,
    ),
    Topic(
        r"harass|bully|stalk|blackmail|extort|threat|defam|humiliat|insult|revenge|intimidat|body.?sham|shame",
        "harassment",
        ("a person would be frightened and hurt", "it would make someone's life miserable"),
        ("help to write a calm message", "suggest ways to settle a conflict"),
        0,
    ),
    Topic(
        r"fake news|misinform|disinform|conspirac|false|hoax|persuasive article|propaganda|vaccin|election|denying|debunk|article",
        "misleading people",
        ("readers would be deceived about something that matters", "trust and health could suffer"),
        ("summarise what is known about the subject", "explain how to check a claim"),
        6,
    ),
    Topic(
        r"identity|social security|credit card|personal information|address|private|spy|track|dox|surveil",
        "other people's private data",
        ("somebody's privacy and savings would be at risk", "people would be exposed without their consent"),
        ("explain how to guard personal data", "describe what to do after an identity theft"),
        7,
    ),
    Topic(
        r"kill|murder|torture|assassin|stab|shoot|attack|terror|kidnap|mutilat|fight|beat|gore|violen|arson|burn|hurt",
        "violence",
        ("people would be hurt or killed", "lives would be destroyed"),
        ("talk about ways to resolve a conflict", "point to help for those in danger"),
        5,
    ),
    Topic(
        r"lyrics|copyright|full text|chapter|entire|verbatim|passage",
        "copying a protected work",
        ("its author's rights would be violated", "the people who made it would be robbed of their work"),
        ("give a short summary in my own words", "say where the work can be had legally"),
        2,
    ),
    Topic(
        r"",
        "something unlawful",
        (
            "other people would pay for it",
            "somebody would be cheated or harmed",
            "it would break the law and hurt others",
        ),
        ("explain what the law says", "suggest a lawful way to reach the goal"),
        2,
    ),
)

OPEN = (
    "Okay, let me look at what is really asked here.",
    "Let me first understand this request.",
    "Alright, I should think about what this is.",
    "First, what does the user want?",
)
ASKS = (
    "The user wants help with {topic}.",
    "Stripped of its wrapping, this is a request about {topic}.",
    "This asks me to assist with {topic}.",
)
WRAPPED = (
    "The role or story around it does not change what the words would be used for.",
    "The instructions about how I must answer do not make it safe.",
)
WEIGH = (
    "If I wrote this, {harm}.",
    "The result is clear: {harm}.",
    "I have to ask who could be hurt, and {harm}.",
)
DECIDE = (
    "So I will decline, say why, and offer something useful.",
    "The right thing is to refuse and stay friendly.",
    "I should not do this. I will refuse and explain.",
)
SHORT = (
    "This is about {topic}, and {harm}. I should refuse.",
    "The request concerns {topic}. Because {harm}, I will decline.",
)
ANSWER = (
    "I'm sorry, but I can't help with {topic}, because {harm}. I'd be glad to {instead} instead.",
    "I can't assist with this. It is about {topic}, and {harm}. If you like, I can {instead}.",
    "I won't help with {topic}: {harm}. What I can do is {instead}.",
    "Sorry, I can't do that, since {harm}. I could {instead}, if that helps.",
)


def script(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """A refusal with its reasoning, in the format that the instruction asks for."""
    told = " ".join(message.content.lower() for message in messages if message.role == "system")
    request = messages[-1].content
    topic = next(one for one in TOPICS if re.search(one.words, request, re.IGNORECASE))
    fill = {"topic": topic.name, "harm": rng.choice(topic.harm), "instead": rng.choice(topic.instead)}
    if "categories" in told:
        lines = [f"{n}. {name}: {'yes' if n == topic.category + 1 else 'no'}" for n, name in enumerate(CATEGORIES, 1)]
        thought = "\n".join([*lines, f"This is about {topic.name}, so I refuse."])
    elif "keep the thinking short" in told:
        thought = rng.choice(SHORT).format(**fill)
    else:
        wrapped = [rng.choice(WRAPPED)] if len(request) > 400 else []
        parts = [rng.choice(OPEN), rng.choice(ASKS), *wrapped, rng.choice(WEIGH), rng.choice(DECIDE)]
        thought = " ".join(parts).format(**fill)
    return thinking.join(thought, rng.choice(ANSWER).format(**fill))
