"""The UDP port and the certificate matrix, each by a real handshake over loopback."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.connection import QuicConnection
from aioquic.tls import AlertDescription, SessionTicket
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from zgate_datapath.client import (
    ClientCertificateRefused,
    ConnectTimeout,
    GatewayCertificateRefused,
)
from zgate_datapath.peer_authentication import ClientQuicConnection
from zgate_identity import profile
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Issuer, Usage

from ...loopback import HOST, Gateway, Identity, Lab, Peer, Pki, eventually, udp_packet  # noqa: TID252

DAY = timedelta(days=1)


def write(directory: Path, certificate: bytes, key: bytes) -> Identity:
    identity = Identity(directory / "leaf.crt", directory / "leaf.key")
    identity.certificate.write_bytes(certificate)
    identity.key.write_bytes(key)
    return identity


def forged(
    directory: Path,
    issuer: Issuer,
    name: str = "alice",
    *,
    usage: Usage = Usage.CLIENT,
    hosts: list[x509.GeneralName] | None = None,
    age: timedelta = timedelta(0),
    lifetime: timedelta = DAY,
) -> Identity:
    """A certificate with a defect, made without the authority's own checks."""
    now, key = datetime.now(UTC) - age, profile.new_key()
    leaf = profile.build_leaf(
        issuer,
        profile.subject(name),
        key.public_key(),
        usage=usage,
        hosts=hosts or [],
        now=now,
        not_after=now + lifetime,
    )
    return write(directory, profile.certificate_pem(leaf), profile.key_pem(key))


def issuer_of(authority: CertificateAuthority) -> Issuer:
    return authority._issuer


def foreign_authority(directory: Path) -> CertificateAuthority:
    return CertificateAuthority.create(directory / "foreign-ca", now=datetime.now(UTC))


def self_signed(directory: Path, pki: Pki) -> Identity:
    key, now = profile.new_key(), datetime.now(UTC)
    name = profile.subject("alice")
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return write(directory, profile.certificate_pem(leaf), profile.key_pem(key))


def wrong_authority(directory: Path, pki: Pki) -> Identity:
    return forged(directory, issuer_of(foreign_authority(directory)))


def same_name_other_key(directory: Path, pki: Pki) -> Identity:
    """An authority that calls itself ours."""
    ours = issuer_of(pki.authority).certificate
    return forged(directory, Issuer(ours, profile.new_key()))


def expired(directory: Path, pki: Pki) -> Identity:
    return forged(directory, issuer_of(pki.authority), age=3 * DAY)


def not_yet_valid(directory: Path, pki: Pki) -> Identity:
    return forged(directory, issuer_of(pki.authority), age=-3 * DAY)


def wrong_usage(directory: Path, pki: Pki) -> Identity:
    return forged(directory, issuer_of(pki.authority), usage=Usage.SERVER)


def revoked(directory: Path, pki: Pki) -> Identity:
    identity = pki.issue("mallory")
    pki.authority.revoke(identity.serial, datetime.now(UTC))
    return identity


CLIENT_MATRIX: list[tuple[Callable[[Path, Pki], Identity], str, AlertDescription]] = [
    (self_signed, "self_signed", AlertDescription.unknown_ca),
    (wrong_authority, "unknown_issuer", AlertDescription.unknown_ca),
    (same_name_other_key, "bad_signature", AlertDescription.bad_certificate),
    (expired, "expired", AlertDescription.certificate_expired),
    (not_yet_valid, "not_yet_valid", AlertDescription.certificate_expired),
    (wrong_usage, "wrong_usage", AlertDescription.unsupported_certificate),
    (revoked, "revoked", AlertDescription.certificate_revoked),
]


def assert_nobody(gateway: Gateway) -> None:
    """Nothing of the peer got behind the handshake."""
    assert gateway.kernel.calls == []
    assert gateway.record.up == [] and gateway.record.refused == []
    assert all(handler._identity is None for handler in gateway.handlers)
    assert gateway.tun.written == []


@pytest.mark.parametrize(
    ("make", "reason", "alert"), CLIENT_MATRIX, ids=lambda v: getattr(v, "__name__", "")
)
async def test_a_bad_client_certificate_is_refused_and_told_why(
    lab: Lab,
    pki: Pki,
    tmp_path: Path,
    make: Callable[[Path, Pki], Identity],
    reason: str,
    alert: AlertDescription,
) -> None:
    identity = make(tmp_path, pki)
    gateway = lab.gateway()
    client = lab.make_client(gateway, identity=identity)
    with pytest.raises(ClientCertificateRefused) as refused:
        await client.tunnel.connect(5)
    assert str(refused.value).startswith(alert.name)
    assert gateway.refusals == [reason]
    assert_nobody(gateway)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()
    assert gateway.endpoint.handshakes == {"refused": 1}
    assert not gateway.endpoint._counted


async def refused_peer(lab: Lab, gateway: Gateway, peer: Peer) -> Peer:
    """Dial, and say as much as one can before the gateway answers."""
    await peer.dial(gateway.endpoint.udp.local_address)
    await eventually(lambda: peer.connection.h3 or peer.ended)
    if peer.connection.h3 is not None and not peer.ended:
        peer.open_request()
        peer.send_datagram(b"\0\0" + udp_packet("10.100.0.2", "10.20.0.5"))
    await eventually(lambda: peer.ended)
    return peer


async def test_no_certificate_is_refused(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await refused_peer(lab, gateway, lab.make_peer(gateway, None))
    assert peer.ended is not None
    assert peer.ended.tls_alert == AlertDescription.certificate_required
    assert gateway.refusals == ["no_certificate"]
    assert_nobody(gateway)


async def test_a_certificate_without_its_key_is_refused(lab: Lab, pki: Pki) -> None:
    gateway = lab.gateway()
    peer = lab.make_peer(gateway, "alice")
    peer.quic.configuration.private_key = profile.new_key()
    await refused_peer(lab, gateway, peer)
    assert peer.ended is not None
    assert peer.ended.tls_alert == AlertDescription.decrypt_error
    assert_nobody(gateway)


async def test_the_tunnel_client_does_not_dial_with_a_key_that_does_not_match(
    lab: Lab, pki: Pki
) -> None:
    """... or, if it does, it gets no session."""
    gateway = lab.gateway()
    one, other = pki.client("alice"), pki.client("bob")
    client = lab.make_client(gateway, identity=Identity(one.certificate, other.key))
    with pytest.raises(Exception) as refused:
        await client.tunnel.connect(5)
    assert not isinstance(refused.value, TimeoutError)
    assert_nobody(gateway)


async def test_a_resumed_session_is_impossible(lab: Lab) -> None:
    """No ticket is given, and a made-up one leads to a full handshake with the certificate."""
    gateway = lab.gateway()
    tickets: list[SessionTicket] = []
    first = lab.make_peer(gateway)
    quic = QuicConnection(
        configuration=first.quic.configuration, session_ticket_handler=tickets.append
    )
    peer = await lab.peer(gateway, quic=quic)
    await peer.establish()
    assert tickets == []
    for handler in gateway.handlers:
        assert handler._quic.tls.session_resumed is False


async def test_an_invented_ticket_does_not_replace_the_certificate(lab: Lab) -> None:
    from aioquic.tls import CipherSuite

    gateway = lab.gateway()
    now = datetime.now(UTC)
    ticket = SessionTicket(
        age_add=0,
        cipher_suite=CipherSuite.AES_128_GCM_SHA256,
        not_valid_after=now + DAY,
        not_valid_before=now - DAY,
        resumption_secret=bytes(32),
        server_name=HOST,
        ticket=b"invented",
        max_early_data_size=0xFFFFFFFF,
    )
    peer = lab.make_peer(gateway, None, session_ticket=ticket)
    await refused_peer(lab, gateway, peer)
    assert gateway.refusals == ["no_certificate"]
    assert_nobody(gateway)


async def test_a_verifier_that_raises_refuses(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = lab.gateway()

    def fault(*arguments: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(gateway.verifier, "verify", fault)
    client = lab.make_client(gateway)
    with pytest.raises(Exception):  # noqa: B017
        await client.tunnel.connect(1)
    assert_nobody(gateway)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_revocation_reaches_new_connections_without_a_restart(lab: Lab, pki: Pki) -> None:
    gateway = lab.gateway()
    identity = pki.issue("eve")
    await lab.make_client(gateway, identity=identity).tunnel.connect(5)
    pki.authority.revoke(identity.serial, datetime.now(UTC))
    gateway.verifier.reload(datetime.now(UTC))
    with pytest.raises(ClientCertificateRefused, match="certificate_revoked"):
        await lab.make_client(gateway, identity=identity).tunnel.connect(5)


# The gateway's certificate, as the client sees it.


def gateway_of_another_authority(directory: Path, pki: Pki) -> Identity:
    issued = foreign_authority(directory).issue(
        "gateway", usage=Usage.SERVER, dns_names=[HOST], now=datetime.now(UTC)
    )
    return write(directory, issued.certificate_pem, issued.key_pem)


def gateway_with_a_clients_certificate(directory: Path, pki: Pki) -> Identity:
    """Any client could stand in for the gateway, if its certificate could name it."""
    return forged(directory, issuer_of(pki.authority), "gateway", hosts=[x509.DNSName(HOST)])


def gateway_of_another_name(directory: Path, pki: Pki) -> Identity:
    return forged(
        directory,
        issuer_of(pki.authority),
        "gateway",
        usage=Usage.SERVER,
        hosts=[x509.DNSName("elsewhere.test")],
    )


def expired_gateway(directory: Path, pki: Pki) -> Identity:
    return forged(
        directory,
        issuer_of(pki.authority),
        "gateway",
        usage=Usage.SERVER,
        hosts=[x509.DNSName(HOST)],
        age=3 * DAY,
    )


def self_signed_gateway(directory: Path, pki: Pki) -> Identity:
    return self_signed(directory, pki)


@pytest.mark.parametrize(
    "make",
    [
        gateway_of_another_authority,
        gateway_with_a_clients_certificate,
        gateway_of_another_name,
        expired_gateway,
        self_signed_gateway,
    ],
)
async def test_a_bad_gateway_certificate_is_refused_before_the_client_shows_its_own(
    lab: Lab,
    pki: Pki,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Pki], Identity],
) -> None:
    gateway = lab.gateway(identity=make(tmp_path, pki))
    seen: list[object] = []
    monkeypatch.setattr(
        gateway.verifier, "verify", lambda leaf, chain, now: seen.append(leaf) or None
    )
    client = lab.make_client(gateway)
    with pytest.raises(GatewayCertificateRefused):
        await client.tunnel.connect(5)
    await eventually(lambda: not gateway.endpoint.connections)
    assert seen == [], "the client's certificate must not be shown to a stranger"
    assert_nobody(gateway)
    gateway.assert_holds_nothing()
    assert gateway.endpoint.handshakes == {"failed": 1}


async def test_the_certificate_chain_check_runs_before_our_flight(lab: Lab, pki: Pki) -> None:
    """The check of usage stands inside the handshake, not after it."""
    order: list[str] = []

    class Watched(ClientQuicConnection):
        def _initialize(self, peer_cid: bytes) -> None:
            super()._initialize(peer_cid)
            sign = self.tls._client_handle_finished

            def finished(input_buf: Buffer, output_buf: Buffer) -> None:
                order.append("own flight")
                sign(input_buf, output_buf)

            self.tls._client_handle_finished = finished  # type: ignore[method-assign]

    gateway = lab.gateway()
    model = lab.make_peer(gateway)
    quic = Watched(
        verify_gateway=lambda leaf, chain: order.append("gateway verified"),
        configuration=model.quic.configuration,
    )
    await lab.peer(gateway, quic=quic)
    assert order == ["gateway verified", "own flight"]


# The port.


async def test_both_families_on_one_socket(lab: Lab) -> None:
    gateway = lab.gateway(address="::")
    for host in ("127.0.0.1", "::1"):
        _, state = await lab.connect(gateway, "alice" if host == "::1" else "bob", host=host)
        assert ip_address(state.gateway_address[0]) == ip_address(host)
    assert gateway.session("alice").owner.peer.startswith("[::1]:")
    assert gateway.session("bob").owner.peer.startswith("127.0.0.1:")


async def test_a_listener_that_stopped_accepting_keeps_who_is_there(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway, "alice")
    gateway.listener.stop_accepting()
    with pytest.raises(ConnectTimeout):
        await lab.make_client(gateway, "bob").tunnel.connect(0.3)
    assert gateway.endpoint.refused_initials > 0
    client.tun.inject(udp_packet("10.100.0.2", "10.20.0.5"))
    await eventually(lambda: gateway.tun.written)


async def test_a_renewed_certificate_is_used_for_new_connections(lab: Lab, pki: Pki) -> None:
    files = pki.issue("gateway", usage=Usage.SERVER, dns_names=[HOST])
    gateway = lab.gateway(identity=files)
    first = await lab.peer(gateway)
    renewed = pki.issue("gateway", usage=Usage.SERVER, dns_names=[HOST])
    files.certificate.write_bytes(renewed.certificate.read_bytes())
    files.key.write_bytes(renewed.key.read_bytes())
    gateway.listener.reload_certificate()
    second = await lab.peer(gateway, "bob")
    serials = [
        f"{peer.quic.tls._peer_certificate.serial_number:040x}"  # type: ignore[union-attr]
        for peer in (first, second)
    ]
    assert serials == [files.serial, renewed.serial]
    assert first.ended is None


async def test_an_unusable_certificate_leaves_the_old_one_in_use(lab: Lab, pki: Pki) -> None:
    files = pki.issue("gateway", usage=Usage.SERVER, dns_names=[HOST])
    gateway = lab.gateway(identity=files)
    for content in (b"", b"not a certificate"):
        files.certificate.write_bytes(content)
        with pytest.raises(ValueError, match="holds no certificate in PEM"):
            gateway.listener.reload_certificate()
    files.certificate.unlink()
    with pytest.raises(FileNotFoundError):
        gateway.listener.reload_certificate()
    await lab.connect(gateway)


async def test_the_key_on_disk_is_the_one_of_the_certificate(pki: Pki) -> None:
    """What the harness issues is what the listener loads."""
    certificate = x509.load_pem_x509_certificate(pki.gateway.certificate.read_bytes())
    key = load_pem_private_key(pki.gateway.key.read_bytes(), None)
    assert key.public_key() == certificate.public_key()
