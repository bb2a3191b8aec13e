"""Write `docs/schemas/*.json`: what zgatectl's commands print with --json.

    .venv/bin/python tools/cli_schemas.py

A test compares the files with the code, so that a change of what is printed is a change of a file.
"""

import json
import sys
from pathlib import Path

from zgate_cli.json_schemas import ANSWERS, file_name_of, schema_of

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"


def documents() -> dict[str, str]:
    """The files by name."""
    return {
        file_name_of(command): json.dumps(schema_of(command), indent=2, ensure_ascii=False) + "\n"
        for command in ANSWERS
    }


def main() -> None:
    """Write them, and remove what no command has any more."""
    FOLDER.mkdir(exist_ok=True)
    wanted = documents()
    for old in FOLDER.glob("*.json"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    sys.stdout.write(f"{FOLDER}: {len(wanted)} schemas\n")


if __name__ == "__main__":
    main()
