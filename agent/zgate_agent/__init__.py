"""The agent: the spoke on a user's device."""
