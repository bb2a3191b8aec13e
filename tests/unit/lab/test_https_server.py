import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_lab.https_server import (
    CERTIFICATE_FILE,
    KEY_FILE,
    LOG_FILE,
    RequestRecord,
    Server,
    make_certificate,
    read_log,
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    make_certificate(tmp_path, "office", ["127.0.0.1", "::1"])
    server = Server(0, tmp_path, "office")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def connect(server: Server, directory: Path, address: str) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=directory / CERTIFICATE_FILE)
    return http.client.HTTPSConnection(
        address, server.server_address[1], context=context, timeout=10
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_client_learns_its_address_and_the_log_has_it(
    server: Server, tmp_path: Path, address: str
) -> None:
    connection = connect(server, tmp_path, address)
    connection.request("GET", "/")
    answer = json.loads(connection.getresponse().read())
    assert answer == {"server": "office", "client": address}
    (record,) = read_log(tmp_path / LOG_FILE)
    assert (record.client, record.method, record.path) == (address, "GET", "/")
    connection.close()


def test_one_connection_carries_many_requests(server: Server, tmp_path: Path) -> None:
    connection = connect(server, tmp_path, "127.0.0.1")
    connection.request("GET", "/bytes/100000")
    assert connection.getresponse().read() == bytes(100_000)
    connection.request("POST", "/", body=bytes(70_000))
    assert json.loads(connection.getresponse().read()) == {"bytes": 70_000}
    assert [one.body_bytes for one in read_log(tmp_path / LOG_FILE)] == [100_000, 70_000]
    connection.close()


@pytest.mark.parametrize("path", ["/nothing", "/bytes/", "/bytes/-1", "/bytes/99999999999"])
def test_what_is_not_there(server: Server, tmp_path: Path, path: str) -> None:
    connection = connect(server, tmp_path, "127.0.0.1")
    connection.request("GET", path)
    assert connection.getresponse().status == 404
    connection.close()


def test_the_key_is_private(tmp_path: Path) -> None:
    make_certificate(tmp_path, "office", [])
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


@given(
    st.builds(
        RequestRecord,
        time_s=st.floats(allow_nan=False),
        client=st.text(),
        client_port=st.integers(),
        method=st.text(),
        path=st.text(),
        body_bytes=st.integers(),
    )
)
def test_a_record_is_one_line_and_read_as_it_was_written(record: RequestRecord) -> None:
    line = record.to_json()
    assert "\n" not in line
    assert RequestRecord.from_json(line) == record


def test_a_line_being_written_is_left_for_later(tmp_path: Path) -> None:
    log = tmp_path / LOG_FILE
    assert read_log(log) == []
    lines = [RequestRecord(1.0, "a", 1, "GET", "/", n).to_json() + "\n" for n in range(3)]
    for end in range(len("".join(lines)) + 1):
        text = "".join(lines)[:end]
        log.write_text(text)
        assert len(read_log(log)) == text.count("\n")
