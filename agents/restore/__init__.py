"""Restores of machines and of disks: to files in a folder, to the machine they were of, to a new one."""
