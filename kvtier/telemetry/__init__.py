"""What observes the tier: metrics for Prometheus, traces for OpenTelemetry. The tier imports none of it."""
