"""Tests by room. Not shipped."""
