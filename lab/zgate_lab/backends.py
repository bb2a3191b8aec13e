"""Servers that people really run, each in a namespace: nginx, dnsmasq, PostgreSQL, OpenSSH.

What they need of files is in the lab's folder; nothing of the host's own configuration is read.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

from zgate_lab import backend_server
from zgate_lab.errors import LabError
from zgate_lab.internet import Host
from zgate_lab.lab import Lab
from zgate_lab.process import Process
from zgate_lab.waiting import SLOWNESS

START_TIMEOUT_S = 20.0
HTTP_PORT, DNS_PORT, SSH_PORT, POSTGRES_PORT = 80, 53, 22, 5432
#: Who is not root and is on every Debian; PostgreSQL refuses to run as root.
ORDINARY_USER = "nobody"
DATABASE_USER, DATABASE_PASSWORD = "doctor", "only in the lab"
#: The name that the DNS server knows, and its address.
DNS_NAME, DNS_ADDRESS = "mri.hospital.test", "10.40.0.77"

NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 2g;
    server {{
        listen [::]:{port} ipv6only=off;
        root {directory}/www;
        location = /who {{ return 200 "{name}\\n"; }}
    }}
}}
"""
SSHD = """\
Port {port}
HostKey {directory}/host_key
PidFile none
AuthorizedKeysFile {directory}/client_key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PrintMotd no
"""


def _directory(lab: Lab, host: Host, what: str) -> Path:
    directory = lab.directory / f"{host.namespace.role}-{what}"
    directory.mkdir()
    return directory


def wait_listening(process: Process, host: Host, port: int) -> None:
    """Wait until somebody listens on a TCP port of a host."""

    def is_listening() -> bool:
        return bool(host.namespace.run("ss", "-Hltn", f"sport = :{port}").stdout.strip())

    process.wait_for(is_listening, START_TIMEOUT_S, f"somebody to listen on port {port}")


def start_backend_server(host: Host, name: str) -> Process:
    """Echo and the name: `backend_server`."""
    process = host.namespace.spawn(
        f"{host.namespace.role}-server",
        *(sys.executable, "-m", "zgate_lab.backend_server", "--name", name),
    )
    process.wait_for_output(backend_server.READY, START_TIMEOUT_S)
    return process


def start_nginx(lab: Lab, host: Host, name: str) -> Path:
    """nginx on port 80: `/who` answers `name`; the files of the returned folder are served."""
    directory = _directory(lab, host, "nginx")
    (directory / "www").mkdir()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, name=name, port=HTTP_PORT))
    # nginx's workers are not root, and the lab's folder is root's alone.
    user = ("-g", "user root;")
    process = host.namespace.spawn(
        f"{host.namespace.role}-nginx", "nginx", *user, "-c", config, "-p", directory
    )
    wait_listening(process, host, HTTP_PORT)
    return directory / "www"


def start_dns(host: Host) -> Process:
    """dnsmasq, which knows one name and asks nobody."""
    process = host.namespace.spawn(
        f"{host.namespace.role}-dnsmasq",
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"),
        *("--log-facility=-", "--pid-file=", "--user=root", f"--port={DNS_PORT}"),
        f"--host-record={DNS_NAME},{DNS_ADDRESS}",
    )
    wait_listening(process, host, DNS_PORT)
    return process


class SshServer:
    """OpenSSH's sshd for root, by key.

    Attributes:
        key: the client's private key; known_hosts: the server's, under any name.
    """

    def __init__(self, lab: Lab, host: Host) -> None:
        directory = _directory(lab, host, "sshd")
        self.key = directory / "client_key"
        for name in ("host_key", "client_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name))
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.write_text(f"* {(directory / 'host_key.pub').read_text()}")
        config = directory / "sshd_config"
        config.write_text(SSHD.format(directory=directory, port=SSH_PORT))
        # What Debian's unit makes for it before it starts: an empty folder.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        process = host.namespace.spawn(
            f"{host.namespace.role}-sshd", "/usr/sbin/sshd", "-D", "-e", "-f", config
        )
        wait_listening(process, host, SSH_PORT)

    def login(self, address: str) -> list[str]:
        """The command line of a client, without the remote command."""
        return [
            *("ssh", "-F", "/dev/null", "-i", str(self.key), "-o", "BatchMode=yes"),
            *("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "ConnectTimeout=10", f"root@{address}"),
        ]


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * SLOWNESS,
        stdin=subprocess.DEVNULL,
        cwd="/",
    )
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()[-800:]}")


def postgres_programs() -> Path:
    """Where Debian keeps initdb and postgres: not on the path.

    Raises:
        LabError: they are not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise LabError("no PostgreSQL: apt-get install postgresql")
    return found[-1].parent


def start_postgres(lab: Lab, host: Host) -> Process:
    """PostgreSQL with one user, who has a password (SCRAM), as an ordinary user's process."""
    programs = postgres_programs()
    # Not in the lab's folder, which is root's alone.
    directory = lab.run.directory / f"{host.namespace.role}-postgres"
    directory.mkdir(mode=0o700)
    user = pwd.getpwnam(ORDINARY_USER)
    password = directory / "password"
    password.write_text(f"{DATABASE_PASSWORD}\n")
    for path in (directory, password):
        os.chown(path, user.pw_uid, user.pw_gid)
    data = directory / "data"
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    _run(
        *(*as_user, str(programs / "initdb"), "-D", str(data), "--no-sync", "--no-locale"),
        *("-U", DATABASE_USER, "--auth=scram-sha-256", "--encoding=UTF8", f"--pwfile={password}"),
    )
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    # An IPC namespace of its own: what is left of a killed one goes with it.
    process = host.namespace.spawn(
        f"{host.namespace.role}-postgres",
        *("unshare", "--ipc", "--", *as_user, str(programs / "postgres"), "-D", str(data)),
        *("-c", "listen_addresses=*", "-c", f"unix_socket_directories={directory}"),
        *("-c", "fsync=off", "-p", str(POSTGRES_PORT)),
    )
    process.wait_for_output("database system is ready to accept connections", START_TIMEOUT_S)
    return process
