"""Tokens of every kind, good and forged, and an issuer over real HTTP on a loopback port."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm, get_default_algorithms

from knhk_sidecar.identity.jwks import read_key_set
from knhk_sidecar.identity.jwks_source import KeySource

NOW = 1_800_000_000
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
CURVES: Mapping[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
    "ES256K": ec.SECP256K1(),
}


@cache
def key(name: str, kind: str = "RS256", bits: int = 2048) -> PrivateKey:
    """A key by name, made once: what RSA takes is most of a test's time."""
    if kind.startswith("ES"):
        return ec.generate_private_key(CURVES[kind])
    return rsa.generate_private_key(65537, bits)


def jwk(private: PrivateKey, key_id: str | None, **more: object) -> dict[str, object]:
    """The public half, as an issuer publishes it."""
    if isinstance(private, rsa.RSAPrivateKey):
        found = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
    else:
        found = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
    return {**found, **({} if key_id is None else {"kid": key_id}), **more}


def key_set(*keys: Mapping[str, object]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(algorithm: str, signed: bytes, private: PrivateKey | bytes) -> bytes:
    if isinstance(private, bytes):
        return hmac.new(private, signed, getattr(hashlib, f"sha{algorithm[-3:]}")).digest()
    made = get_default_algorithms()[algorithm].sign(signed, private)
    assert isinstance(made, bytes)
    return made


@dataclass
class Forge:
    """Makes tokens; the default is a good one of `issuer`."""

    issuer: str = "https://issuer.example"
    audience: str = "knhk"
    subject: str = "alice"
    key_id: str = "one"
    algorithm: str = "RS256"
    key: PrivateKey = field(default_factory=lambda: key("one"))
    now: int = NOW

    def claims(self, **changes: object) -> dict[str, object]:
        """The claims with changes; `...` leaves one out."""
        base: dict[str, object] = {
            "iss": self.issuer, "aud": self.audience, "sub": self.subject,
            "iat": self.now, "nbf": self.now, "exp": self.now + 600,
        }  # fmt: skip
        return {name: value for name, value in {**base, **changes}.items() if value is not ...}

    def header(self, **changes: object) -> dict[str, object]:
        base: dict[str, object] = {"alg": self.algorithm, "kid": self.key_id, "typ": "JWT"}
        return {name: value for name, value in {**base, **changes}.items() if value is not ...}

    def token(
        self,
        claims: Mapping[str, object] | bytes | None = None,
        header: Mapping[str, object] | bytes | None = None,
        *,
        algorithm: str = "",
        key: PrivateKey | bytes | None = None,
        signature: bytes | None = None,
    ) -> str:
        """In the compact form, signed as told: by `algorithm` and `key`, or with the signature that is given."""
        payload = (
            claims if isinstance(claims, bytes) else json.dumps(self.claims() if claims is None else claims).encode()
        )
        head = header if isinstance(header, bytes) else json.dumps(self.header() if header is None else header).encode()
        return self.compact(b64(head), b64(payload), algorithm=algorithm, key=key, signature=signature)

    def compact(
        self,
        header: str,
        payload: str,
        *,
        algorithm: str = "",
        key: PrivateKey | bytes | None = None,
        signature: bytes | None = None,
    ) -> str:
        """From parts that are encoded already."""
        signed = f"{header}.{payload}"
        if signature is None:
            signature = sign(algorithm or self.algorithm, signed.encode(), self.key if key is None else key)
        return f"{signed}.{b64(signature)}"


class GivenKeys(KeySource):
    """Keys that the test gives."""

    def __init__(self, name: str, raw: bytes) -> None:
        super().__init__(name)
        self.asked = 0
        self.adopt(read_key_set(raw, name))

    async def renew(self) -> None:
        self.asked += 1

    async def follow(self) -> None:
        """They stay what they are."""


class HttpIssuer:
    """An issuer's HTTP side. What it answers, and whether it does, can be changed while it runs."""

    def __init__(self, *keys: Mapping[str, object]) -> None:
        self.keys = list(keys)
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        """By path, instead of the usual one: status, body, headers."""
        self.scheme = "http"
        self.delay = threading.Event()
        self.delay.set()
        self._server: ThreadingHTTPServer | None = None
        self._place = socket.socket()
        """Bound to the port for life, so that nobody else gets it while this issuer is away."""
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens."""
        issuer = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                issuer.delay.wait(60)
                status, body, headers = issuer.answers.get(self.path) or issuer.answer(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Says nothing."""

        class Listener(ThreadingHTTPServer):
            allow_reuse_port = True

        self._server = Listener(("127.0.0.1", self.port), Answers)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def secure(self, context: ssl.SSLContext) -> None:
        """From now on by TLS."""
        assert self._server is not None, "it listens"
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "https"

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if path == "/.well-known/openid-configuration":
            document = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks", "token_endpoint": f"{self.url}/token"}
            return 200, json.dumps(document).encode(), {"content-type": "application/json"}
        if path == "/jwks":
            return 200, key_set(*self.keys), {"content-type": "application/jwk-set+json"}
        return 404, b"", {}

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """Gives the port back."""
        self._place.close()


@contextmanager
def http_issuer(*keys: Mapping[str, object]) -> Iterator[HttpIssuer]:
    issuer = HttpIssuer(*keys)
    issuer.start()
    try:
        yield issuer
    finally:
        issuer.delay.set()
        issuer.stop()
        issuer.close()
