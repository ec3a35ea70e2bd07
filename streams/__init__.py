"""The log: everything that knows Kafka."""
