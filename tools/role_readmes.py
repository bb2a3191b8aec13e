"""Write the tables of variables in the READMEs of the Ansible roles, from their argument_specs.

tests/packaging/test_ansible.py says if one is not as this would write it.
"""

from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[1] / "ansible" / "roles"
BEGIN, END = "<!-- variables -->", "<!-- end of variables -->"


def options_of(role: Path, entry: str = "main") -> dict[str, dict[str, Any]]:
    """A role's variables and what its specification says of each."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    options: dict[str, dict[str, Any]] = specs["argument_specs"][entry]["options"]
    return options


def table(role: Path) -> str:
    """The variables as a table of Markdown."""
    rows = ["| Variable | Type | Default | |", "|---|---|---|---|"]
    for name, option in options_of(role).items():
        text = option["description"].replace("|", r"\|")
        if "choices" in option:
            text += f" One of {', '.join(f'`{one}`' for one in option['choices'])}."
        if "options" in option:
            text += f" Keys: {', '.join(f'`{key}`' for key in option['options'])}."
        rows.append(f"| `{name}` | {_type(option)} | {_default(option)} | {text} |")
    return "\n".join(rows)


def _type(option: dict[str, Any]) -> str:
    kind: str = option["type"]
    return f"list of {option['elements']}" if kind == "list" else kind


def _default(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "needed"
    if "default" not in option:
        return ""
    value = option["default"]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def with_table(role: Path) -> str:
    """The role's README with the table as it should be."""
    before, _, rest = (role / "README.md").read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(role)}\n\n{END}{after}"


if __name__ == "__main__":
    for role in sorted(path.parent for path in ROLES.glob("*/README.md")):
        (role / "README.md").write_text(with_table(role))
