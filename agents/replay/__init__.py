"""The captured log served to a server of the source's own series, as a primary serves its replica.

`wire`, `session` and `events` are bytes in, records out, and know no socket; `feed` turns the log's steps into packets;
`server` listens. What is applied, and how, is the replica's own business: definitions, session variables, parallelism.
"""
