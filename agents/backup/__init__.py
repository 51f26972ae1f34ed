"""Backups of machines: snapshots of hosts into repositories."""
