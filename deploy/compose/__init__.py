"""A site as containers: three Kafka brokers, PostgreSQL, and Holdfast's processes (compose.yaml)."""
