"""What every service stands on: Postgres, Kafka, outbox, objects, secrets, telemetry. Nothing about training."""
