"""Turns traces into training examples and preference pairs, and draws named components into one training set."""

from demur.mix.draw import Drop, Mixed, Row, mix
from demur.mix.examples import Unfit, example_of, examples_of, unfit

__all__ = ["Drop", "Mixed", "Row", "Unfit", "example_of", "examples_of", "mix", "unfit"]
