"""The schema keeper: `schema.<source>` is kept by replaying each DDL step on a schema-only scratch server.

Reading the live schema instead would race: by the time a step has been captured, later DDL may have been carried out.
"""
