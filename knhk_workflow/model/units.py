"""The unit that every time and every duration is in, inside: whole nanoseconds."""

from __future__ import annotations

from typing import Final

NS_PER_S: Final = 1_000_000_000
