"""Bytes on disk: record files, artifacts, readers of users' files, the reply cache."""
