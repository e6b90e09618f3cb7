"""Traces with failure patterns are mended or dropped, and what became of them is counted."""
