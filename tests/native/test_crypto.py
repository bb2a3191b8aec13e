"""AEAD and header protection: RFC 9001's own examples, libcrypto against ipsec-mb, forgeries."""

import ctypes
import os
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from .bindings import (
    AES_128_GCM,
    AES_256_GCM,
    BACKENDS,
    CHACHA20_POLY1305,
    CIPHERS,
    MASK_BYTES,
    SAMPLE_BYTES,
    TAG_BYTES,
    AeadJob,
    Bytes,
    Keys,
    buffer,
    choose,
    native,
    room,
)
from .build import load

# RFC 9001 appendix A.1
CLIENT_INITIAL = Keys(
    AES_128_GCM,
    bytes.fromhex("1f369613dd76d5467730efcbe3b1a22d"),
    bytes.fromhex("fa044b2f42a3fd3b46fb255c"),
    bytes.fromhex("9f50449e04a0e810283a1e9933adedd2"),
)
SERVER_INITIAL = Keys(
    AES_128_GCM,
    bytes.fromhex("cf3a5331653c364c88f0f379b6067e37"),
    bytes.fromhex("0ac1493ca1905853b0bba03e"),
    bytes.fromhex("c206b8d9b9f0f37644430b490eeaa314"),
)
# RFC 9001 appendix A.5
CHACHA20 = Keys(
    CHACHA20_POLY1305,
    bytes.fromhex("c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"),
    bytes.fromhex("e0459b3474bdd0e44a41c144"),
    bytes.fromhex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4"),
)


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request):
    if not choose(request.param):
        pytest.skip(f"{request.param} is not here")
    yield request.param
    assert choose("auto")


def random_keys(cipher: int) -> Keys:
    size = native().zdp_cipher_key_bytes(cipher)
    return Keys(cipher, os.urandom(size), os.urandom(12), os.urandom(size))


def run(function, keys: Keys, packets: list[tuple[int, bytes, bytes]], grow: int):
    """Seal or open (packet number, header, text) as one batch; (ok, out) of each."""
    jobs = (AeadJob * len(packets))()
    kept = []
    for job, (number, header, text) in zip(jobs, packets, strict=True):
        parts = buffer(header), buffer(text), room(max(0, len(text) + grow))
        kept.append(parts)
        job.packet_number = number
        job.header, job.text, job.out = (ctypes.cast(part, Bytes) for part in parts)
        job.header_bytes, job.text_bytes = len(header), len(text)
    key = keys.new()
    function(key, jobs, len(packets))
    native().zdp_key_free(key)
    return [(job.ok, bytes(parts[2])) for job, parts in zip(jobs, kept, strict=True)]


def seal(keys: Keys, packets):
    return run(native().zdp_seal_batch, keys, packets, TAG_BYTES)


def open_(keys: Keys, packets):
    return run(native().zdp_open_batch, keys, packets, -TAG_BYTES)


def masks(keys: Keys, samples: list[bytes]) -> list[bytes]:
    key = keys.new()
    out = room(SAMPLE_BYTES * len(samples))
    assert native().zdp_masks(key, b"".join(samples), len(samples), out)
    native().zdp_key_free(key)
    return [
        bytes(out[i : i + MASK_BYTES]) for i in range(0, SAMPLE_BYTES * len(samples), SAMPLE_BYTES)
    ]


def judge_of(keys: Keys):
    """Another library's AEAD: cryptography's."""
    return ChaCha20Poly1305(keys.key) if keys.cipher == CHACHA20_POLY1305 else AESGCM(keys.key)


def test_rfc9001_a2_client_initial() -> None:
    crypto = bytes.fromhex(
        "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868"
        "04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578"
        "616d706c652e636f6dff01000100000a00080006001d00170018001000070005"
        "04616c706e000500050100000000003300260024001d00209370b2c9caa47fba"
        "baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400"
        "0d0010000e0403050306030203080408050806002d00020101001c0002400100"
        "3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000"
        "75300901100f088394c8f03e51570806048000ffff"
    )
    header = bytes.fromhex("c300000001088394c8f03e5157080000449e00000002")
    payload = crypto + bytes(1162 - len(crypto))
    ((ok, sealed),) = seal(CLIENT_INITIAL, [(2, header, payload)])
    assert ok
    assert sealed[:16] == bytes.fromhex("d1b1c98dd7689fb8ec11d242b123dc9b")
    # The tag covers all between.
    assert sealed[-16:] == bytes.fromhex("e221af44860018ab0856972e194cd934")
    assert masks(CLIENT_INITIAL, [sealed[:16]]) == [bytes.fromhex("437b9aec36")]


def test_rfc9001_a3_server_initial() -> None:
    header = bytes.fromhex("c1000000010008f067a5502a4262b50040750001")
    payload = bytes.fromhex(
        "02000000000600405a020000560303eefce7f7b37ba1d1632e96677825ddf73988cfc79825df566dc5430b"
        "9a045a1200130100002e00330024001d00209d3c940d89690b84d08a60993c144eca684d1081287c834d53"
        "11bcf32bb9da1a002b00020304"
    )
    ((ok, sealed),) = seal(SERVER_INITIAL, [(1, header, payload)])
    assert ok
    assert sealed == bytes.fromhex(
        "5a482cd0991cd25b0aac406a5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839"
        "b3dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84022f8ef4cdd93795d77d"
        "06edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee"
    )
    assert masks(SERVER_INITIAL, [sealed[2:18]]) == [bytes.fromhex("2ec0d8356a")]
    assert open_(SERVER_INITIAL, [(1, header, sealed)]) == [(True, payload)]


def test_rfc9001_a4_retry_integrity_tag() -> None:
    """Nothing of the engine's, but one more GCM vector: all header, no text."""
    retry = Keys(
        AES_128_GCM,
        bytes.fromhex("be0c690b9f66575a1d766b54e368c84e"),
        bytes.fromhex("461599d35d632bf2239825bb"),
        bytes(16),
    )
    pseudo = bytes.fromhex("088394c8f03e515708ff000000010008f067a5502a4262b5746f6b656e")
    ((ok, tag),) = seal(retry, [(0, pseudo, b"")])
    assert ok
    assert tag == bytes.fromhex("04a265ba2eff4d829058fb3f0f2496ba")


def test_rfc9001_a5_chacha20_short_header() -> None:
    number = 654360564
    header = bytes.fromhex("4200bff4")
    ((ok, sealed),) = seal(CHACHA20, [(number, header, b"\x01")])
    assert ok
    assert sealed == bytes.fromhex("655e5cd55c41f69080575d7999c25a5bfb")
    assert masks(CHACHA20, [sealed[1:17]]) == [bytes.fromhex("aefefe7d03")]
    assert open_(CHACHA20, [(number, header, sealed)]) == [(True, b"\x01")]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_length_is_another_librarys(cipher: int) -> None:
    keys = random_keys(cipher)
    judge = judge_of(keys)
    packets = [
        (length << 40 | length, os.urandom(length % 40), os.urandom(length))
        for length in [*range(0, 320), 1199, 1200, 1300, 1452, 9000, 65_000]
    ]
    sealed = seal(keys, packets)
    for (number, header, text), (ok, out) in zip(packets, sealed, strict=True):
        nonce = (int.from_bytes(keys.iv, "big") ^ number).to_bytes(12, "big")
        assert ok
        assert out == judge.encrypt(nonce, text, header)
    back = [
        (number, header, out) for (number, header, _), (_, out) in zip(packets, sealed, strict=True)
    ]
    assert open_(keys, back) == [(True, text) for _, _, text in packets]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_batch_goes_on_behind_what_does_not_open(cipher: int) -> None:
    keys = random_keys(cipher)
    good = [(n, b"header", bytes([n]) * (n + 1)) for n in range(60)]
    packets = [
        (n, header, out) for (n, header, _), (_, out) in zip(good, seal(keys, good), strict=True)
    ]
    bad = {3: "number", 10: "header", 17: "text", 24: "tag", 31: "cut", 38: "empty"}
    for i, what in bad.items():
        n, header, text = packets[i]
        flipped = bytes([text[0] ^ 1]) + text[1:]
        packets[i] = {
            "number": (n + 1, header, text),
            "header": (n, b"Header", text),
            "text": (n, header, flipped),
            "tag": (n, header, text[:-1] + bytes([text[-1] ^ 0x80])),
            "cut": (n, header, text[: TAG_BYTES - 1]),
            "empty": (n, header, b""),
        }[what]
    for i, (ok, text) in enumerate(open_(keys, packets)):
        assert ok is (i not in bad)
        if ok:
            assert text == good[i][2]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_bit_of_a_packet_counts(cipher: int) -> None:
    keys = random_keys(cipher)
    header, text = b"\x40header", b"the text of a packet"
    ((_, sealed),) = seal(keys, [(7, header, text)])
    forged = [(7, flip(header, bit), sealed) for bit in range(8 * len(header))]
    forged += [(7, header, flip(sealed, bit)) for bit in range(8 * len(sealed))]
    assert not any(ok for ok, _ in open_(keys, forged))
    assert open_(keys, [(7, header, sealed)]) == [(True, text)]


def flip(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_key_serves_both_directions_in_turn(cipher: int) -> None:
    keys = random_keys(cipher)
    key = keys.new()
    for number in range(8):
        text, sealed, back = buffer(b"both ways"), room(25), room(9)
        job = AeadJob(
            packet_number=number,
            header=ctypes.cast(text, Bytes),
            header_bytes=4,
            text=ctypes.cast(text, Bytes),
            text_bytes=9,
            out=ctypes.cast(sealed, Bytes),
        )
        native().zdp_seal_batch(key, ctypes.byref(job), 1)
        assert job.ok
        job.text, job.text_bytes = ctypes.cast(sealed, Bytes), 25
        job.out, job.ok = ctypes.cast(back, Bytes), False
        native().zdp_open_batch(key, ctypes.byref(job), 1)
        assert job.ok
        assert bytes(back) == b"both ways"
    native().zdp_key_free(key)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_masks_of_a_batch_are_those_of_one_by_one(cipher: int) -> None:
    keys = random_keys(cipher)
    samples = [os.urandom(SAMPLE_BYTES) for _ in range(100)]
    batch = masks(keys, samples)
    assert batch == [masks(keys, [sample])[0] for sample in samples]
    assert len(set(batch)) > 90


def test_limits_are_those_of_rfc9001_6_6() -> None:
    for cipher, sealed, forged in (
        (AES_128_GCM, 2**23, 2**52),
        (AES_256_GCM, 2**23, 2**52),
        (CHACHA20_POLY1305, 2**62, 2**36),
    ):
        key = random_keys(cipher).new()
        assert native().zdp_key_seal_limit(key) == sealed
        assert native().zdp_key_forged_limit(key) == forged
        native().zdp_key_free(key)


def test_what_seals_has_a_name(backend: str) -> None:
    name = native().zdp_crypto_backend().decode()
    assert name.startswith({"openssl": "OpenSSL 3", "ipsec-mb": "ipsec-mb 1"}[backend])
    assert not choose("rot13")
    assert native().zdp_crypto_backend().decode() == name


def test_keys_made_before_a_choice_stay_as_they_are(backend: str) -> None:
    keys = random_keys(AES_128_GCM)
    key = keys.new()
    assert choose("openssl")
    text, out = buffer(b"text"), room(20)
    job = AeadJob(text=ctypes.cast(text, Bytes), text_bytes=4, out=ctypes.cast(out, Bytes))
    native().zdp_seal_batch(key, ctypes.byref(job), 1)
    assert bytes(out) == judge_of(keys).encrypt(keys.iv, b"text", b"")
    native().zdp_key_free(key)
    assert choose(backend)


def test_another_key_does_not_open() -> None:
    keys = random_keys(AES_256_GCM)
    ((_, sealed),) = seal(keys, [(1, b"h", b"text")])
    for other in (
        replace(keys, key=flip(keys.key, 0)),
        replace(keys, iv=flip(keys.iv, 95)),
    ):
        assert [ok for ok, _ in open_(other, [(1, b"h", sealed)])] == [False]


def test_the_null_cipher_is_only_in_builds_that_ask_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ZGATE_BENCH_NULL_CIPHER", "1")
    keys = random_keys(AES_128_GCM)
    ((_, sealed),) = seal(keys, [(1, b"h", b"0ext")])
    assert sealed[-16:] != bytes(16)
    asking = load("crypto.c", "crypto_ipsec_mb.c", defines=("ZDP_BENCH_NULL_CIPHER",))
    asking.zdp_key_new.restype = ctypes.c_void_p
    key = ctypes.c_void_p(asking.zdp_key_new(AES_128_GCM, keys.key, keys.iv, keys.header_key))
    text, out = buffer(b"0ext"), room(20)
    job = AeadJob(text=ctypes.cast(text, Bytes), text_bytes=4, out=ctypes.cast(out, Bytes))
    asking.zdp_seal_batch(key, ctypes.byref(job), ctypes.c_size_t(1))
    assert bytes(out) == b"0ext" + bytes(16)
    # What is sealed for good (aioquic's packets) opens beside them.
    header, text = buffer(b"h"), buffer(sealed)
    job = AeadJob(
        packet_number=1,
        header=ctypes.cast(header, Bytes),
        header_bytes=1,
        text=ctypes.cast(text, Bytes),
        text_bytes=len(sealed),
        out=ctypes.cast(out, Bytes),
    )
    asking.zdp_open_batch(key, ctypes.byref(job), ctypes.c_size_t(1))
    assert (job.ok, bytes(out)[:4]) == (True, b"0ext")
    asking.zdp_key_free(key)
