"""The gateway's configuration: defaults without a file, and one clear line for a bad one."""

import json
import re
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from zgate_config import ConfigError, parse_document, validate
from zgate_datapath.congestion import CHOICES
from zgate_gateway import config as config_module
from zgate_gateway.config import GatewayConfig, QuicConfig, load_config
from zgate_gateway.worker.messages import TracingSettings

EXAMPLES = Path(__file__).parents[3] / "gateway" / "examples"


def load(tmp_path, text):
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    return load_config(path)


def mistakes(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return [line.removeprefix(f"{tmp_path}/gateway.yaml:") for line in caught.value.lines]


def test_defaults_are_a_gateway_without_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "DEFAULT_PATH", tmp_path / "none" / "gateway.yaml")
    config = load_config()
    assert config == GatewayConfig()
    assert config.policy_file is None
    assert config.pki is None
    assert (config.listen.address, config.listen.port) == (ip_address("::"), 443)
    assert config.pool.ipv4 == ip_network("10.100.0.0/16")
    assert config.pool.ipv6 == ip_network("fd7a:7a67:6174:65::/64")
    assert config.socket_path == Path("/run/zgate/gateway.sock")
    assert config.routes == (ip_network("0.0.0.0/0"), ip_network("::/0"))


def test_the_default_file_is_read_if_it_is_there(tmp_path, monkeypatch):
    path = tmp_path / "gateway.yaml"
    monkeypatch.setattr(config_module, "DEFAULT_PATH", path)
    path.write_text("listen: {port: 4433}")
    assert load_config().listen.port == 4433
    path.write_text("listen: {prot: 4433}")
    with pytest.raises(ConfigError):
        load_config()


def test_a_default_file_that_cannot_be_read_is_no_reason_for_defaults(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(config_module, "DEFAULT_PATH", tmp_path / "file" / "gateway.yaml")
    with pytest.raises(ConfigError, match="Not a directory"):
        load_config()
    (tmp_path / "gateway.yaml").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(config_module, "DEFAULT_PATH", tmp_path / "gateway.yaml")
    with pytest.raises(ConfigError, match="No such file"):
        load_config()


def test_a_named_file_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="expected a readable file, got: No such file"):
        load_config(tmp_path / "none.yaml")


def test_the_example_says_what_the_defaults_are():
    config = load_config(EXAMPLES / "gateway.yaml")
    assert config.policy_file == EXAMPLES / "policy.yaml"
    assert config.model_copy(update={"policy_file": None}) == GatewayConfig()


def test_the_example_names_every_key():
    text = (EXAMPLES / "gateway.yaml").read_text()
    for name, field in GatewayConfig.model_fields.items():
        assert re.search(rf"^(# )?{name}:", text, re.MULTILINE), name
        for inner in getattr(field.annotation, "model_fields", {}):
            assert re.search(rf"^(# )? *{inner}:", text, re.MULTILINE), f"{name}.{inner}"


def test_a_domain_is_in_lower_case_and_without_its_last_dot(tmp_path):
    assert load(tmp_path, "services: {domain: Corp.Example.}").services.domain == "corp.example"


def test_paths_are_relative_to_the_file(tmp_path):
    for name in ("p.yaml", "ca.crt", "g.crt", "g.key"):
        (tmp_path / name).write_text("")
    config = load(
        tmp_path,
        "policy_file: p.yaml\nruntime_dir: run\nstate_dir: state\naudit: {path: a.jsonl}\n"
        "pki: {ca: ca.crt, certificate: g.crt, key: g.key}\n",
    )
    assert config.policy_file == tmp_path / "p.yaml"
    assert config.socket_path == tmp_path / "run" / "gateway.sock"
    assert (config.state_dir, config.audit.path) == (tmp_path / "state", tmp_path / "a.jsonl")
    assert config.pki is not None
    assert (config.pki.key, config.pki.crl) == (tmp_path / "g.key", None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("listen:\n  port: 70000", "2: listen.port: expected a port (0 to 65535), got 70000"),
        (
            "policy_file: /none.yaml",
            "1: policy_file: expected a readable file "
            '(No such file or directory: /none.yaml), got "/none.yaml"',
        ),
        (
            "pool: {ipv4: 10.0.0.0/31}",
            '1: pool.ipv4: expected a pool of /30 or wider, got "10.0.0.0/31"',
        ),
        (
            "pool: {ipv6: fd00::/127}",
            '1: pool.ipv6: expected a pool of /126 or wider, got "fd00::/127"',
        ),
        *[
            (
                f"pool: {{{key}: '{network}'}}",
                f"1: pool.{key}: expected a pool of unicast addresses that hosts may hold, "
                f'got "{network}"',
            )
            for key, network in [
                ("ipv4", "224.0.0.0/24"), ("ipv4", "127.0.0.0/8"), ("ipv4", "169.254.0.0/16"),
                ("ipv4", "0.0.0.0/0"), ("ipv6", "::/0"), ("ipv6", "fe80::/64"),
                ("ipv6", "ff00::/8"),
            ]
        ],
        (
            "pool: {ipv4: 10.0.0.1/8}",
            "1: pool.ipv4: expected a CIDR without host bits (the network is 10.0.0.0/8), "
            'got "10.0.0.1/8"',
        ),
        (
            "pool: {ipv4: 10.0.0.0/8}",
            "1: services.ipv4: expected a network apart from pool.ipv4 (10.0.0.0/8), "
            "got 10.101.0.0/16",
        ),
        (
            "services:\n  ipv6: fd7a:7a67:6174::/48",
            "2: services.ipv6: expected a network apart from pool.ipv6 (fd7a:7a67:6174:65::/64), "
            "got fd7a:7a67:6174::/48",
        ),
        (
            "services: {ipv4: 10.101.0.0/31}",
            '1: services.ipv4: expected a pool of /30 or wider, got "10.101.0.0/31"',
        ),
        *[
            (
                f"services: {{domain: '{domain}'}}",
                f"1: services.domain: expected a domain such as zgate.internal, "
                f'got "{domain}"',
            )
            for domain in ("", ".", "a..b", "-a.b", "10.0.0.1", "a b")
        ],
        ("tun: {mtu_bytes: 1279}", "1: tun.mtu_bytes: expected at least 1280, got 1279"),
        (
            "quic: {max_datagram_bytes: 1330}",
            "1: quic.max_datagram_bytes: expected at least 1331, got 1330",
        ),
        (
            "dialects: [stream, ztna-v2]",
            "1: dialects[1]: expected 'stream' or 'ztna-v1', got \"ztna-v2\"",
        ),
        ("engine: fast", "1: engine: expected 'auto', 'native' or 'python', got \"fast\""),
        (
            "sessions: {per_identity: both}",
            "1: sessions.per_identity: expected 'newest' or 'oldest', got \"both\"",
        ),
        (
            "limits: {max_clients: 100}",
            "1: sessions.max: expected at most limits.max_clients (100), got 10000",
        ),
        (
            "tun: {name: t0}\nuplink: {interface: t0}",
            '2: uplink.interface: expected another interface than the TUN itself, got "t0"',
        ),
        (
            "server_names: ['*.org']",
            '1: server_names[0]: expected a host name or an IP address, got "*.org"',
        ),
        ("uplink: {masquerade: no}", '1: uplink.masquerade: expected true or false, got "no"'),
        (
            "log: {levle: info}",
            "1: log.levle: expected one of level, format; "
            'got the unknown key "levle" (did you mean level?)',
        ),
        ("runtime_dir: 5", "1: runtime_dir: expected a path, got 5"),
        ("- a", "1: expected a mapping, got a list"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path, text, line):
    assert mistakes(tmp_path, text) == [line]


def test_pki_is_complete_or_absent(tmp_path):
    found = mistakes(tmp_path, f"pki: {{ca: {__file__}}}")
    assert [line.split(":")[1].strip() for line in found] == ["pki.certificate", "pki.key"]


def test_an_unknown_key_lists_the_known_ones(tmp_path):
    (line,) = mistakes(tmp_path, "listne: {}")
    assert line.startswith("1: listne: expected one of listen, state_dir, ")
    assert line.endswith('got the unknown key "listne" (did you mean listen?)')


def test_the_congestion_controls_are_those_that_exist():
    annotation = QuicConfig.model_fields["congestion"].annotation
    assert set(annotation.__args__) == set(CHOICES)


EXAMPLE = (EXAMPLES / "gateway.yaml").read_bytes().replace(b"policy_file", b"#")


def read(data):
    try:
        return validate(parse_document(data, "g.yaml"), GatewayConfig)
    except ConfigError as error:
        assert all(line.isprintable() and line.startswith("g.yaml") for line in error.lines)
        return None


def test_truncated_at_every_byte():
    for length in range(len(EXAMPLE)):
        read(EXAMPLE[:length])
    assert read(EXAMPLE) == GatewayConfig()


def test_one_byte_changed_at_every_place():
    for position in range(0, len(EXAMPLE)):
        for value in (0x00, 0x0A, 0x7B, 0xFF):
            read(EXAMPLE[:position] + bytes([value]) + EXAMPLE[position + 1 :])


@given(st.binary(max_size=100))
def test_any_bytes(data):
    read(data)


@given(
    st.dictionaries(
        st.sampled_from([*GatewayConfig.model_fields, "x"]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=9)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["address", "port", "ipv4", "ipv6", "name", "path", "max"]),
                    inner,
                    max_size=3,
                ),
            ),
        ),
        max_size=5,
    )
)
@example({"policy_file": "\x1f"})
def test_any_shape_of_values(value):
    read(json.dumps(value).encode())


def test_auto_is_a_worker_for_each_core_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)))
    assert GatewayConfig().worker_count == 5
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert GatewayConfig().worker_count == 16
    assert GatewayConfig(workers=3).worker_count == 3


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:4318", "https://collector.example", "http://[::1]:4318/"],
)
def test_a_trace_collector(endpoint: str) -> None:
    assert GatewayConfig().tracing is None
    config = GatewayConfig.model_validate({"tracing": {"endpoint": endpoint}})
    assert config.tracing is not None
    assert config.tracing.settings() == TracingSettings(endpoint, 0.1, client_addresses=False)


@pytest.mark.parametrize(
    "endpoint",
    ["", "127.0.0.1:4318", "grpc://x:4317", "http://", "http://x:0", "http://x:port",
     "http://x:4318/v1/traces", "http://x?y", "http://[::1"],
)  # fmt: skip
def test_no_trace_collector(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="an address such as"):
        GatewayConfig.model_validate({"tracing": {"endpoint": endpoint}})


def test_tracing_without_its_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("tracing:\n  sample_ratio: 1\n")
    assert load_config(file).tracing is not None
    monkeypatch.setattr("zgate_gateway.tracing.extra.is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"tracing: .*pip install 'zgate\[otel\]'"):
        load_config(file)
    file.write_text("")
    assert load_config(file).tracing is None


def test_who_does_not_trace_imports_nothing_of_it() -> None:
    code = (
        "import sys, zgate_gateway.worker.__main__, zgate_gateway.config\n"
        "print([one for one in sys.modules if one.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
