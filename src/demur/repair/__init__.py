"""Repairs or drops traces with failure patterns, and counts the outcomes."""
