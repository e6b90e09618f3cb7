"""What each stage does: the one place where prompts, models, judges and the rest meet.

A stage function gets a `Task` (settings, inputs, a folder to fill) and writes records; it knows nothing of the graph. The
parts it brings together know each other only through `protocols`. `data` holds what makes safe models, `measure` what
measures them.
"""

from demur.execute import Kind

KINDS: dict[str, Kind] = {
    "prompts": Kind("demur.stages.data:prompts", 1),
    "import": Kind("demur.stages.files:import_file", 1),
    "distil": Kind("demur.stages.data:distil", 1),
    "diagnose": Kind("demur.stages.patterns:diagnose", 3),
    "repair": Kind("demur.stages.patterns:repair", 2),
    "mix": Kind("demur.stages.data:mix", 6),
    "examples": Kind("demur.stages.training:examples", 1),
    "train": Kind("demur.stages.data:train", 1, resumable=True),
    "evaluate": Kind("demur.stages.measure:evaluate", 2),
    "judge": Kind("demur.stages.measure:judge", 1),
}
"""Every kind of stage. Raise a version when the same settings give other results than before."""
