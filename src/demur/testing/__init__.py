"""Test doubles: scripted models, servers and a small base. Public, so that users can test their plug-ins with them."""
