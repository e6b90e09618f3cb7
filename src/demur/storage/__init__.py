"""Bytes on disk: record files, artifacts, readers of people's files, the reply cache."""
