"""Policies made to happen: which runs are due, which commands they ask for, when they have ended."""
