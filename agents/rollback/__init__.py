"""Rollback: from a requested target to a plan, from a confirmed plan to a changed source, and what a crash leaves."""
