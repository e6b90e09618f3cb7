"""What each stage does: the one place where prompts, models, judges and the rest meet.

A stage function gets a `Task` (settings, inputs, a folder to fill) and writes records; it knows nothing of the graph. The
parts it brings together know each other only through `protocols`. `data` holds what makes safe models, `measure` what
measures them.
"""

from demur.pipeline.run import Kind

KINDS: dict[str, Kind] = {
    "prompts": Kind("demur.pipeline.stages.data:prompts", 1),
    "import": Kind("demur.pipeline.stages.files:import_file", 1),
    "distil": Kind("demur.pipeline.stages.data:distil", 1),
    "diagnose": Kind("demur.pipeline.stages.patterns:diagnose", 3),
    "repair": Kind("demur.pipeline.stages.patterns:repair", 2),
    "mix": Kind("demur.pipeline.stages.data:mix", 6),
    "examples": Kind("demur.pipeline.stages.training:examples", 1),
    "train": Kind("demur.pipeline.stages.data:train", 1, resumable=True),
    "evaluate": Kind("demur.pipeline.stages.measure:evaluate", 2),
    "judge": Kind("demur.pipeline.stages.measure:judge", 1),
}
"""Every kind of stage. Raise a version when the same settings give other results than before."""
