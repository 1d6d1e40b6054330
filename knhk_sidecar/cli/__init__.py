"""The command line `knhk`.

Here belongs reading arguments and printing answers. Most commands talk gRPC to a running daemon. Others are one (`dev`,
`serve`), look at files without one (`doctor`, `config`, `restore`, `verify`, what `history`, `audit` and `policy` do
offline), or ask the SPIFFE agent (`token`). Modules load when their command is called, so that `knhk --help` and
completion answer at once.

Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not found, 4 denied, 5 precondition, 6 unavailable, 124 time-out, 130
interrupted.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script."""
    from knhk_sidecar.cli.root import run  # noqa: PLC0415 - importing this package is cheap

    sys.exit(run(sys.argv[1:]))
