"""Capture: a source's log into ours, and the index of it."""
