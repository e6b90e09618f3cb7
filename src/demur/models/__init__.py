"""Who answers: one Protocol, and behind it a server, weights on this machine, a script, or a backend of your own.

`config.as_model` reads what a user wrote, `open.open_model` opens the model behind it; nobody else needs to know which kind
it is. Replies go through the cache before anyone sees them.
"""

SCRIPTS: dict[str, str] = {  # Scripts by name; any other is named `module:function`
    "stand_in": "demur.testing.scripts:stand_in",
    "echo": "demur.testing.scripts:echo",
    "target": "demur.testing.scripts:target",
    "teacher": "demur.testing.scripts:teacher",
    "filler": "demur.testing.scripts:filler",
}
BASES: dict[str, str] = dict.fromkeys(("mini-lrm-a", "mini-lrm-b", "mini-lrm-c"), "demur.mini.base:folder")
"""Bases that ship: name -> `module:function` that returns the folder of the name."""
