"""A study file, its stages, and running them."""
