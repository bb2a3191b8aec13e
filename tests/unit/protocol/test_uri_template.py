from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.uri_template import (
    MAX_PATH_CHARS,
    Scope,
    ScopeError,
    TemplateError,
    UriTemplate,
    default_template,
    parse_scope,
)

WELL_KNOWN = default_template("gateway.example:443")
QUERY = UriTemplate("https://gateway.example:4443/masque/ip?t={target}&i={ipproto}")
FORM = UriTemplate("https://gateway.example:4443/masque/ip{?target,ipproto}")
CONTINUED = UriTemplate("https://gateway.example/ip?user=bob{&target,ipproto}")
SPLIT = UriTemplate("https://gateway.example/ip{?target}{&ipproto}")
LIST = UriTemplate("https://gateway.example/ip/{target,ipproto}")
FIXED = UriTemplate("https://masque.example.org/?user=bob")
TEMPLATES = [WELL_KNOWN, QUERY, FORM, CONTINUED, SPLIT, LIST]

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
hostnames = st.lists(labels, min_size=1, max_size=4).map(".".join)
networks = st.one_of(
    st.builds(
        lambda n, bits: IPv4Network((n >> (32 - bits) << (32 - bits), bits)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda n, bits: IPv6Network((n >> (128 - bits) << (128 - bits), bits)),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)
scopes = st.builds(
    Scope, st.one_of(st.none(), networks, hostnames), st.one_of(st.none(), st.integers(0, 255))
)


@given(scopes, st.sampled_from(TEMPLATES))
def test_round_trip(scope: Scope, template: UriTemplate) -> None:
    assert template.match(template.expand(scope)) == scope


@pytest.mark.parametrize(
    ("template", "scope", "path"),
    [
        (WELL_KNOWN, Scope(), "/.well-known/masque/ip/*/*/"),
        (
            WELL_KNOWN,
            Scope(ip_network("2001:db8::42/128"), 132),
            "/.well-known/masque/ip/2001%3Adb8%3A%3A42/132/",
        ),
        (
            WELL_KNOWN,
            Scope(ip_network("2001:db8::/32")),
            "/.well-known/masque/ip/2001%3Adb8%3A%3A%2F32/*/",
        ),
        (QUERY, Scope("target.example.com", 17), "/masque/ip?t=target.example.com&i=17"),
        (FORM, Scope(ip_network("192.0.2.0/24")), "/masque/ip?target=192.0.2.0%2F24&ipproto=*"),
        (CONTINUED, Scope(), "/ip?user=bob&target=*&ipproto=*"),
        (LIST, Scope(), "/ip/*,*"),
        (FIXED, Scope(), "/?user=bob"),
    ],
)
def test_expansion(template: UriTemplate, scope: Scope, path: str) -> None:
    assert template.expand(scope) == path
    assert template.match(path) == scope


@pytest.mark.parametrize("path", ["/masque/ip", "/masque/ip?ipproto=17", "/masque/ip?target=%2A"])
def test_missing_variables_are_wildcards(path: str) -> None:
    scope = FORM.match(path)
    assert scope is not None
    assert scope.target is None


def test_the_order_of_query_parameters_is_free() -> None:
    assert FORM.match("/masque/ip?ipproto=6&target=host") == Scope("host", 6)


@pytest.mark.parametrize(
    "path", ["/", "", "/.well-known/masque/udp/*/*/", "/.well-known/masque/ip/*/*", "x" * 9]
)
def test_other_paths(path: str) -> None:
    assert WELL_KNOWN.match(path) is None


def test_a_very_long_path_is_not_looked_at() -> None:
    assert FORM.match("/masque/ip?target=" + "a" * MAX_PATH_CHARS) is None


@pytest.mark.parametrize(
    "path",
    [
        "/masque/ip?target=a&target=b",
        "/masque/ip?other=a",
        "/masque/ip?target=",
        "/masque/ip?target",
        "/masque/ip?",
    ],
)
def test_malformed_queries(path: str) -> None:
    if path.endswith("?"):
        assert FORM.match(path) == Scope()
        return
    with pytest.raises(ScopeError):
        FORM.match(path)


BAD_TARGETS = {
    "empty": "",
    "raw colon": "2001:db8::1",
    "raw slash": "10.0.0.0/8",
    "host bits": "10.0.0.1%2F8",
    "IPv6 host bits": "2001%3Adb8%3A%3A1%2F64",
    "length over 32": "10.0.0.0%2F33",
    "length over 128": "%3A%3A%2F129",
    "three digits": "10.0.0.0%2F032",
    "netmask": "10.0.0.0%2F255.0.0.0",
    "negative length": "10.0.0.0%2F-1",
    "empty length": "10.0.0.0%2F",
    "zone": "fe80%3A%3A1%25eth0",
    "broken escape": "a%2",
    "broken escape 2": "a%zz",
    "not ASCII": "%C3%BC.example",
    "control": "a%00b",
    "inet_aton": "127.1",
    "number": "2130706433",
    "hexadecimal": "0x7f000001",
    "four and more numbers": "1.2.3.4.5",
    "number at the end": "a.b.1",
    "leading zero": "010.0.0.1",
    "long label": "a" * 64,
    "long name": ".".join(["a" * 60] * 5),
    "empty label": "a..b",
    "hyphen first": "-a.example",
    "space": "a%20b",
    "wildcard name": "*.example",
    "hostname with length": "host%2F24",
}


@pytest.mark.parametrize("raw", BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
def test_bad_targets(raw: str) -> None:
    with pytest.raises(ScopeError):
        parse_scope(raw, "*")


@pytest.mark.parametrize(
    "raw", ["", "256", "999", "0017", "-1", "+6", "0x6", "tcp", "%D9%A3", "1.0"]
)
def test_bad_protocols(raw: str) -> None:
    with pytest.raises(ScopeError):
        parse_scope("*", raw)


def test_good_values() -> None:
    assert parse_scope(None, None) == Scope()
    assert parse_scope("192.0.2.1", "006") == Scope(ip_network("192.0.2.1/32"), 6)
    assert parse_scope("Host.Example.", "255") == Scope("host.example", 255)
    assert parse_scope("0.0.0.0%2f0", "*") == Scope(ip_network("0.0.0.0/0"))


@given(st.text(max_size=60), st.text(max_size=5))
def test_random_values_never_surprise(target: str, protocol: str) -> None:
    try:
        parse_scope(target, protocol)
    except ScopeError as error:
        assert str(error)


@given(st.text(alphabet="/?&=%{}*,ab1.:ip", max_size=60), st.sampled_from([*TEMPLATES, FIXED]))
def test_random_paths_never_surprise(path: str, template: UriTemplate) -> None:
    try:
        template.match(path)
    except ScopeError as error:
        assert str(error)


@given(scopes, st.sampled_from(TEMPLATES))
def test_paths_truncated_at_every_byte(scope: Scope, template: UriTemplate) -> None:
    path = template.expand(scope)
    for length in range(len(path)):
        try:
            template.match(path[:length])
        except ScopeError as error:
            assert str(error)


BAD_TEMPLATES = {
    "http": "http://a/{target}",
    "relative": "/ip/{target}",
    "no authority": "https:///ip",
    "no path": "https://a",
    "variable in the authority": "https://{target}/ip",
    "userinfo": "https://user@a/ip",
    "fragment": "https://a/ip#x",
    "reserved expansion": "https://a/{+target}",
    "fragment expansion": "https://a/{#target}",
    "label expansion": "https://a/x{.target}",
    "path expansion": "https://a{/target}",
    "path segment expansion": "https://a/x{/target}",
    "parameter expansion": "https://a/x{;target}",
    "prefix (level 4)": "https://a/{target:3}",
    "explode (level 4)": "https://a/{target*}",
    "open brace": "https://a/{target",
    "close brace": "https://a/target}",
    "empty expression": "https://a/{}",
    "space": "https://a/ {target}",
    "not ASCII": "https://a/\u00fc",
    "twice": "https://a/{target}/{target}",
}


@pytest.mark.parametrize("text", BAD_TEMPLATES.values(), ids=BAD_TEMPLATES.keys())
def test_bad_templates(text: str) -> None:
    with pytest.raises(TemplateError):
        UriTemplate(text)


def test_other_variables_are_expanded_and_ignored() -> None:
    template = UriTemplate("https://a/{tenant}/{target}/{ipproto}")
    path = template.expand(Scope(), {"tenant": "a/b"})
    assert path == "/a%2Fb/*/*"
    assert template.match(path) == Scope()


def test_a_scope_that_the_template_cannot_say_is_an_error() -> None:
    assert FIXED.expand(Scope()) == "/?user=bob"
    for scope in (Scope("host"), Scope(None, 6)):
        with pytest.raises(TemplateError):
            FIXED.expand(scope)


def test_what_a_scope_knows_of_itself() -> None:
    assert not Scope().is_limited
    assert Scope(None, 6).is_limited
    assert Scope("host").hostname == "host"
    assert Scope(ip_network("10.0.0.0/8")).hostname is None
    assert Scope(None, 0).names_extension_header
    assert not Scope(None, 50).names_extension_header


def test_the_default_template() -> None:
    assert WELL_KNOWN.authority == "gateway.example:443"
    assert "gateway.example" in repr(WELL_KNOWN)
