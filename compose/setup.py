"""Makes, once, what the containers are given: trust domain, certificates of the broker, configuration of each part.

Run by the service `setup`; what exists is kept, so that `compose up` can be repeated. Volumes are below /vol, one for
each part: no part sees another's keys.
"""

import base64
import datetime
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VOLUMES = Path(os.environ.get("EGM_VOLUMES", "/vol"))
NODES = os.environ.get("NODES", "a b c").split()
TRUST_DOMAIN = "mesh.local"
PUBLISHER = "control-plane"
BROKER_DAYS = 365
PASSWORD_ROUNDS = 101  # what mosquitto_passwd uses; the passwords here are 32 random bytes


def main() -> None:
    """Make what is missing."""
    domain, operator, broker = (VOLUMES / name for name in ("domain", "operator", "broker"))
    if not (domain / "trust" / "domain.json").is_file():
        egm("init", domain / "trust", "--development", "--trust-domain", TRUST_DOMAIN)
    egm("node", "operator", "local", "--domain", domain / "trust", "--out", operator / "operator")
    password = kept(domain / "broker-password")
    database = kept(VOLUMES / "postgres" / "password")
    make_broker(broker, password)
    shutil.copyfile(domain / "trust" / "root.json", operator / "root.json")
    write(operator / "mesh.json", json.dumps(address_book(), indent=2))
    shutil.copyfile(broker / "ca.pem", domain / "broker-ca.pem")
    write(
        domain / "control-plane.yaml",
        yaml.safe_dump(control_plane(password, database), sort_keys=False),
        0o600,
    )
    for node in NODES:
        home = VOLUMES / node
        shutil.copyfile(domain / "trust" / "root.json", home / "root.json")
        shutil.copyfile(domain / "trust" / "ca" / "ca.pem", home / "ca.pem")
        shutil.copyfile(broker / "ca.pem", home / "broker-ca.pem")
        write(home / "sidecar.yaml", yaml.safe_dump(sidecar(node), sort_keys=False))
    print("setup: everything is there", flush=True)


def control_plane(password: str, database: str) -> dict[str, object]:
    """Return the configuration of the control plane."""
    trust = "/vol/domain/trust"
    return {
        "name": "cp-1",
        "trust_domain": TRUST_DOMAIN,
        "data_dir": "/data",
        "listen": "0.0.0.0:7400",
        "join_listen": "0.0.0.0:7401",
        "advertise": "control-plane:7400",
        "store": f"postgresql://egm:{database}@postgres/egm",
        "root": f"{trust}/root.json",
        "online_keys": {
            "snapshot": f"{trust}/online/snapshot.pem",
            "timestamp": f"{trust}/online/timestamp.pem",
            "passphrase_file": f"{trust}/online/passphrase",
        },
        "ca": f"{trust}/ca",
        "identity": "/data/identity",
        "broker": f"mqtts://{PUBLISHER}:{password}@mosquitto:8883?ca=/vol/domain/broker-ca.pem",
    }


def sidecar(node: str) -> dict[str, object]:
    """Return the configuration of one sidecar: its own service, and a loopback listener for each other one."""
    others = [other for other in NODES if other != node]
    return {
        "node": node,
        "trust_domain": TRUST_DOMAIN,
        "data_dir": "/data/state",
        "root": "/data/root.json",
        "control_plane": {"addresses": ["control-plane:7400"], "join_addresses": ["control-plane:7401"]},
        "identity": {"source": "embedded", "ca": "/data/ca.pem", "join_token_file": "/data/join-token"},
        "broker": "mqtts://mosquitto:8883?ca=/data/broker-ca.pem",
        "inbound": [{"service": node, "listen": "0.0.0.0:7443", "upstream": {"address": "127.0.0.1:50051"}}],
        "outbound": [
            {
                "workload": node,
                "service": other,
                "listen": f"127.0.0.1:{listener(other)}",
                "identify": "loopback",
            }
            for other in others
        ],
        "services": {name: {"addresses": [f"{name}:7443"]} for name in NODES},
        "admin": {"listen": "0.0.0.0:7444", "advertise": f"{node}:7444"},
        "health": {"listen": "127.0.0.1:7445"},
    }


def listener(service: str) -> int:
    """Return the loopback port at which a workload reaches `service`: 5101 for the first, and so on."""
    return 5101 + NODES.index(service)


def address_book() -> dict[str, object]:
    """Return mesh.json of the operator."""
    return {
        "trust_domain": TRUST_DOMAIN,
        "root": "root.json",
        "control_plane": "control-plane:7400",
        "join": "control-plane:7401",
        "broker": "mqtts://mosquitto:8883",
        "operator": "operator",
        "nodes": {node: {"admin": f"{node}:7444", "inbound": {node: f"{node}:7443"}} for node in NODES},
    }


def make_broker(home: Path, password: str) -> None:
    """Make a CA and a certificate for Mosquitto, and its password file and access rules."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ROUNDS, 64)
    encoded = "$".join(base64.b64encode(part).decode() for part in (salt, digest))
    write(home / "passwords", f"{PUBLISHER}:$7${PASSWORD_ROUNDS}${encoded}\n", 0o600)
    if (home / "server.pem").is_file():
        return
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        for text in ("egm compose broker CA", "mosquitto")
    )

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=BROKER_DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
            )
        )

    usage = {"content_commitment": False, "data_encipherment": False, "key_agreement": False}
    usage |= {"encipher_only": False, "decipher_only": False, "crl_sign": False}
    ca = (
        certificate(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=False, key_encipherment=False, key_cert_sign=True, **usage),
            critical=True,
        )
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        certificate(name, key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("mosquitto")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_encipherment=False, key_cert_sign=False, **usage),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write(home / "ca.pem", ca.public_bytes(pem).decode())
    write(home / "server.key", private.decode(), 0o600)
    write(
        home / "server.pem", server.public_bytes(pem).decode()
    )  # the CA's key is forgotten: nothing else is signed


def kept(path: Path) -> str:
    """Return the secret in `path`, made when missing. The directory is its part's own volume."""
    if not path.is_file():
        write(path, secrets.token_hex(32), 0o644 if path.parent.name == "postgres" else 0o600)
    return path.read_text()


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def egm(*arguments: object) -> None:
    """Run a verb; what it says is shown if it fails."""
    done = subprocess.run(["egm", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"setup: egm {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
