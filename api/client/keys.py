"""What a client does with API keys, written once for both clients. Its own key needs the scope `admin` for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.client.core import Core, Operation
from api.client.records import Key

if TYPE_CHECKING:
    from collections.abc import Sequence


class Keys(Core):
    """Make, list, replace and revoke keys of the account."""

    @Operation
    async def keys(self, *, ended: bool = False) -> list[Key]:
        """The account's keys, newest first; with `ended` also those that are expired or revoked."""
        page = await self._document("GET", "/keys", params={"ended": ended})
        return [Key.model_validate(item) for item in page["items"]]

    @Operation
    async def key(self, key_id: str) -> Key:
        """Read one."""
        return Key.model_validate(await self._document("GET", f"/keys/{key_id}"))

    @Operation
    async def create_key(
        self, *, label: str = "", scopes: Sequence[str] | None = None, expires_in_days: int | None = None
    ) -> Key:
        """Make a key; the answer has it in `key`, this once.

        Args:
            label: What it is for.
            scopes: What it may do; None for everything but keys.
            expires_in_days: None for a key that does not expire.
        """
        wish: dict[str, Any] = {"label": label, "expires_in_days": expires_in_days}
        if scopes is not None:
            wish["scopes"] = list(scopes)
        return Key.model_validate(await self._document("POST", "/keys", json=wish))

    @Operation
    async def rotate_key(self, key_id: str, *, overlap_s: int | None = None) -> Key:
        """Make a key that takes the place of another one, which works on for the overlap (a day if left out)."""
        wish = {} if overlap_s is None else {"overlap_seconds": overlap_s}
        return Key.model_validate(await self._document("POST", f"/keys/{key_id}/rotate", json=wish))

    @Operation
    async def revoke_key(self, key_id: str) -> None:
        """Make a key useless for good, within seconds."""
        await self._request("DELETE", f"/keys/{key_id}")
