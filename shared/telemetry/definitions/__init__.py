"""The definitions of all metrics, by subject. `shared.telemetry.metrics` puts them together."""
