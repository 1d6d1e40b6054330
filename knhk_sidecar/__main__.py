"""`python -m knhk_sidecar` is `knhk`."""

from __future__ import annotations

from knhk_sidecar.cli import main

if __name__ == "__main__":
    main()
