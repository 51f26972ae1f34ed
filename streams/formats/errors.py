"""What a decoder of this package raises, and the only thing it raises, whatever bytes it is given."""

from __future__ import annotations

import decimal
import functools
import struct
import zlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from streams.errors import StreamError

P = ParamSpec("P")
R = TypeVar("R")


class FormatError(StreamError):
    """Bytes that are not what the format says, or a format that this version does not read.

    Codes: `truncated`, `malformed`, `bad-length`, `bad-checksum`, `unsupported-event`, `unknown-type`, `unknown-table`,
    `too-large`, `partial-image`, `system-schema`, `not-invertible`.
    """


DAMAGED_HINT = "the bytes were damaged since they were captured, or are not of this format: verify the record's digest"


def damaged(what: str) -> FormatError:
    """The error for bytes that contradict themselves; `what` names the structure being read."""
    return FormatError("malformed", f"{what} is malformed", DAMAGED_HINT)


def only_format_errors(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Turns what damaged bytes provoke in a parser (indexes, text, numbers) into a FormatError naming `what`."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (
                struct.error,
                LookupError,
                ValueError,
                OverflowError,
                zlib.error,
                decimal.DecimalException,
            ) as error:
                raise damaged(what) from error

        return guarded

    return wrap
