"""What tests of the agent share."""
