"""The error of videos that can't be decoded, and the words for it."""

import re

from cache.errors import ReskdError

# Parts of decord's messages: clock time and source line, values of pointers, the name of the file in memory.
_VARYING_PARTS = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: |\(-?\d+ vs\. -?\d+\) ?|\[?/proc/self/fd/\d+\]?")


class DecodeError(ReskdError):
    """No decoder can serve these frames of a video. The caller adds the clip's name to the message."""


def short_reason(error: Exception) -> str:
    """An error's first line, without the parts that change from run to run: reasons are stored, and runs must be equal."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    text = _VARYING_PARTS.sub("", text.splitlines()[0])
    return text[:200]
