"""Models: one Protocol, and behind it a server, weights on this machine, a script, or a backend of your own.

`config.as_model` reads a user's description of a model and `open.open_model` opens it; no other code needs to know
which kind it is. Every reply is stored in the cache before it is returned.
"""

SCRIPTS: dict[str, str] = {  # Name -> `module:function`; a user's script is named as `module:function` itself
    "stand_in": "demur.testing.scripts:stand_in",
    "echo": "demur.testing.scripts:echo",
    "target": "demur.testing.scripts:target",
    "teacher": "demur.testing.scripts:teacher",
    "filler": "demur.testing.scripts:filler",
}
BASES: dict[str, str] = dict.fromkeys(("mini-lrm-a", "mini-lrm-b", "mini-lrm-c"), "demur.mini.base:folder")
"""Shipped bases: name -> `module:function`, which is called with the name and returns the folder."""
