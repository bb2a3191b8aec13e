"""What several gateways share: today the store."""
