"""Baselines: a consistent full of a source at a known position, kept as files until there is a repository to keep it.

    <data_dir>/baselines/<source>/<baseline>/
        manifest.json               what it is, with the BLAKE3 of every file (`agents.baseline.manifest`)
        definitions.jsonl.zst       table definitions as `schema.<source>` records them, one JSON object a line
        objects.jsonl.zst           databases, tables, sequences, routines, views, triggers, events: what creates them
        rows/00001.rows.zst         rows of one table as the server sent them (`agents.baseline.rows`)

It is written beside its place (`.new-<baseline>`), flushed, and renamed: it is there whole or not at all.
"""
