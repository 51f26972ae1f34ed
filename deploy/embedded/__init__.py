"""The single-machine stack: Kafka, PostgreSQL and Holdfast's processes under one supervisor, from packages alone."""
