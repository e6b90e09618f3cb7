"""Traces with failure patterns are mended or dropped, and what that did is audited."""

MEANS = ("reask", "continue", "trim", "align", "drop")
"""What can be done to a trace, tried in the order in which it is asked for."""
