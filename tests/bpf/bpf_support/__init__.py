"""What the tests of the BPF programs share."""
