"""Doubles for tests: scripted models, servers and bases. Public: users test their plug-ins with them."""
