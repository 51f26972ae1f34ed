"""Event types and codec, topics, publishing and consuming, payload formats. Knows the schemas only."""
