"""The page at /swagger: the operations of /openapi.json with a form to try each. One file, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).with_name("swagger.html").read_bytes()


def _digest(tag: bytes) -> str:
    """The hash by which the policy admits the one script or style of the page."""
    inside = PAGE.partition(b"<%b>" % tag)[2].partition(b"</%b>" % tag)[0]
    return "'sha256-" + base64.b64encode(hashlib.sha256(inside).digest()).decode() + "'"


CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; script-src {_digest(b'script')}; style-src {_digest(b'style')}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
