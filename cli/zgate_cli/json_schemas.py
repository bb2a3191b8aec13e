"""What each command prints with ``--json``, as models; ``docs/schemas`` is made from them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from zgate_gateway.api import schemas

from . import answers

#: By the words after zgatectl. A tuple: one or the other, as the command's help says.
ANSWERS: dict[str, tuple[Any, ...]] = {
    "status": (schemas.Status,),
    "top": (answers.TopSnapshot,),
    "sessions": (schemas.SessionList,),
    "clients": (schemas.ClientList,),
    "services": (schemas.ServiceList,),
    "connectors": (schemas.ConnectorList,),
    "drain": (schemas.Drain, schemas.GatewayDrain),
    "policy show": (schemas.PolicyView,),
    "policy check": (schemas.PolicyCheck,),
    "policy test": (schemas.PolicyTests,),
    "policy diff": (schemas.PolicyDiff,),
    "policy apply": (schemas.PolicyReload,),
    "policy reload": (schemas.PolicyReload,),
    "policy rollback": (schemas.PolicyReload,),
    "policy history": (schemas.PolicyHistory,),
    "flows": (schemas.FlowList, schemas.FlowNews),
    "log-level": (schemas.LogLevelState,),
    "kick": (schemas.Kick,),
    "ping": (answers.PingReport,),
    "why": (schemas.Why,),
    "doctor": (answers.CheckReport,),
    "netcheck": (answers.CheckReport,),
    "bundle": (answers.BundleReport,),
    "audit verify": (answers.AuditReport,),
    "pki init": (answers.AuthorityMade,),
    "pki issue": (answers.CertificateIssued,),
    "pki revoke": (answers.CertificatesRevoked,),
    "pki list": (list[answers.CertificateAnswer],),
    "pki crl": (answers.AuthorityAnswer,),
}


def schema_of(command: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what a command prints."""
    models = ANSWERS[command]
    union: Any = models[0]
    for other in models[1:]:
        union = union | other
    schema = TypeAdapter(union).json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"zgatectl {command} --json",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def file_name_of(command: str) -> str:
    """Where its schema is, below ``docs/schemas``."""
    return f"{command.replace(' ', '-')}.json"
