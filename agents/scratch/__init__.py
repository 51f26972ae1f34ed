"""Scratch copies: a source as it was after any step, on a private server on the agent's machine, for a while."""
