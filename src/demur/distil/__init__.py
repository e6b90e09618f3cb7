"""A teacher makes traces under a strategy, and a safety filter keeps some of them. The student may be the teacher."""

STRATEGIES = ("default", "realsafe", "improved", "short", "template", "nocot", "self", "structured", "rewrite")
"""The shipped strategies, each a file `strategies/NAME.md`: the paper's six, then three in which the student writes."""
