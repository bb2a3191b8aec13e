"""zgatectl."""
