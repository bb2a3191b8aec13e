"""What goes wrong with the bed itself, and not with what is tested on it."""


class BedError(Exception):
    """A machine or its file system could not be made; the text says which step, and why."""


class CommandFailed(BedError):
    """A command in a machine ended with another status than 0.

    Attributes:
        status: its exit status.
        output: what it printed, errors first.
    """

    def __init__(self, machine: str, command: str, status: int, output: str) -> None:
        super().__init__(f"on {machine}: {command}: status {status}: {output.strip()[-2000:]}")
        self.status = status
        self.output = output
