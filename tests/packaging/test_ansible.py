"""The roles say of themselves what is true: variables, defaults, READMEs, the programs' own keys.

What needs Ansible itself is in tests/appliance.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import role_readmes  # noqa: E402 - tools are no package

ROLES = sorted(path for path in (ROOT / "ansible" / "roles").iterdir() if path.is_dir())
every_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def defaults_of(role: Path) -> dict[str, Any]:
    return yaml.safe_load((role / "defaults" / "main.yml").read_text())


@every_role
def test_defaults_are_those_of_the_specification(role: Path) -> None:
    told = {
        name: option["default"]
        for name, option in role_readmes.options_of(role).items()
        if "default" in option
    }
    assert defaults_of(role) == told


@every_role
def test_every_variable_has_a_type_and_a_description(role: Path) -> None:
    def check(options: dict[str, Any]) -> None:
        for name, option in options.items():
            assert option["type"], name
            assert option["description"].endswith("."), name
            check(option.get("options", {}))

    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    for entry in specs["argument_specs"].values():
        check(entry["options"])


@every_role
def test_every_variable_that_is_used_is_specified(role: Path) -> None:
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    known = {name for entry in specs["argument_specs"].values() for name in entry["options"]}
    files = [path for path in role.rglob("*") if path.suffix in (".yml", ".j2")]
    used = set()
    for path in files:
        if path.parent.name != "meta":
            text = re.sub(r"(?m)^\s*#.*", "", path.read_text())
            used |= set(re.findall(rf"(?<![\w.-]){role.name}_\w+", text))
    # What one part of the role tells another.
    used -= {"zgate_common_unit"}
    assert used <= known
    assert known <= used | {"zgate_common_identity_place"}


@every_role
def test_the_readme_has_the_table_of_variables(role: Path) -> None:
    assert (role / "README.md").read_text() == role_readmes.with_table(role), (
        "run tools/role_readmes.py"
    )


def settings_of(role: str) -> set[str]:
    """The keys of the configuration that a role writes."""
    text = (ROOT / "ansible" / "roles" / role / "vars" / "main.yml").read_text()
    return set(yaml.safe_load(text)[f"__{role}_settings"])


def models() -> list[Any]:
    from zgate_agent.config import AgentConfig
    from zgate_connector.config import ConnectorConfig
    from zgate_gateway.config import GatewayConfig

    # The unit says where these are; and what is written in one way is not also written in others.
    return [
        pytest.param("zgate_gateway", GatewayConfig, {"state_dir", "runtime_dir", "socket_path"}),
        pytest.param("zgate_agent", AgentConfig, {"runtime_dir", "intermediate_server", "gateway"}),
        pytest.param(
            "zgate_connector", ConnectorConfig, {"runtime_dir", "intermediate_server", "gateway"}
        ),
    ]


@pytest.mark.parametrize(("role", "model", "left_out"), models())
def test_every_key_of_a_configuration_can_be_set(
    role: str, model: type[BaseModel], left_out: set[str]
) -> None:
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert settings_of(role) | left_out == keys
