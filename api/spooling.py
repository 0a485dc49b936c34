"""No room where bodies lie while they come and are looked at: the temporary folder is full, which is nobody's fault.

That passes as soon as other requests end, so the answer asks to come again.
"""

from __future__ import annotations

import errno

from api.errors import Unavailable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space is left, a quota is used up, or the process may write no larger files."""
RETRY_AFTER_S = 10


def is_full(error: BaseException) -> bool:
    """Tell whether something could not be written for want of room."""
    return isinstance(error, OSError) and error.errno in FULL


def no_room() -> Unavailable:
    """Return the refusal of a request whose body there is no room for now."""
    return Unavailable(
        "There is no room to receive files at the moment; send it again a little later, or in smaller parts.",
        code="temporary_storage_full",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
