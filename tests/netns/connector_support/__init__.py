"""What the tests of a connector in namespaces share."""
