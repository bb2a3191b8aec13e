"""What the programs cost the kernel's verifier: checked by a test, told at the end of the run."""

import platform

VERIFIED_INSTRUCTIONS = "verified instructions"


def tell(reporter):
    """A line for each program that a test has asked about."""
    counts = [
        value
        for report in reporter.getreports("passed") + reporter.getreports("failed")
        for name, value in report.user_properties
        if name == VERIFIED_INSTRUCTIONS and report.when == "call"
    ]
    if counts:
        reporter.section(f"{VERIFIED_INSTRUCTIONS}, kernel {platform.release()}")
        for count in counts:
            reporter.write_line(count)
