"""What a decision costs, and what rules and clients take in the kernel's memory."""
