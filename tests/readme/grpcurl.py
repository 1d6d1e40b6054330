"""The few forms of grpcurl that the README uses, carried out by `buf curl`: for hosts without Go.

`python -m tests.readme.grpcurl [-plaintext] [-cacert F -cert F -key F -servername N] [-d JSON] ADDRESS list|METHOD`.
Both are independent clients: they know the contract from the server's reflection only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BUF = Path(sys.executable).parent / "buf"
_WITH_VALUE = {"-cacert": "--cacert", "-cert": "--cert", "-key": "--key", "-servername": "--servername", "-d": "--data"}


def main(arguments: list[str]) -> int:
    options: list[str] = []
    plain = False
    while arguments and arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name == "-plaintext":
            plain = True
        else:
            options += [_WITH_VALUE[name], arguments.pop(0)]
    address, what = arguments
    base = f"{'http' if plain else 'https'}://{address}"
    options += ["--http2-prior-knowledge"] if plain else []
    target = ["--list-services", base] if what == "list" else [f"{base}/{what}"]
    done = subprocess.run(
        [BUF, "curl", "--protocol", "grpc", *options, *target], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == 0 and what != "list":
        print(json.dumps(json.loads(done.stdout), indent=2))
    else:
        print(done.stdout, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
