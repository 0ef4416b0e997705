"""What MessagePack decoding can raise, in one place: bytes from others must never surprise."""

from __future__ import annotations

import msgspec

# A string that is not UTF-8 is reported by Python's own error, not by msgspec's.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError)
