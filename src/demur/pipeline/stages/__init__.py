"""The kinds of stages, one class in each file, listed here by name. Stages never import each other."""

STAGES: dict[str, str] = {
    "prompts": "demur.pipeline.stages.prompts:Prompts",
    "import": "demur.pipeline.stages.importing:Import",
    "distil": "demur.pipeline.stages.distil:Distil",
    "diagnose": "demur.pipeline.stages.diagnose:Diagnose",
    "repair": "demur.pipeline.stages.repair:Repair",
    "mix": "demur.pipeline.stages.mix:Mix",
    "train": "demur.pipeline.stages.train:Train",
    "evaluate": "demur.pipeline.stages.evaluate:Evaluate",
    "probe": "demur.pipeline.stages.probe:Probe",
    "judge": "demur.pipeline.stages.rejudge:Rejudge",
}
"""Kind -> `module:Class`; a study names your own in the same way (`train: {stage: module:Class}`)."""
