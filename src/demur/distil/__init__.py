"""A teacher and a strategy make traces; a safety filter keeps some of them. Student-side strategies included."""

STRATEGIES = ("default", "realsafe", "improved", "short", "template", "nocot", "self", "structured", "rewrite")
"""The strategies that ship, each a file `strategies/NAME.md`: the paper's six, then three in which the student writes."""
