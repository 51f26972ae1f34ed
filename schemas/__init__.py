"""Schemas of every event, with golden encodings, and the OpenAPI and AsyncAPI documents. Knows nothing of the other rooms."""
