"""Locks: what is installed, by version and digest, without addresses."""
