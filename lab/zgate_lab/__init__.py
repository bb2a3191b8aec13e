"""A small internet of network namespaces, for the demo, the tests and the bench."""
