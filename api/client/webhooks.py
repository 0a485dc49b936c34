"""What a client does with webhooks, written once for both clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.client.core import Core, Operation, Stream
from api.client.records import Delivery, Webhook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Webhooks(Core):
    """Have servers told, and see how that goes."""

    @Operation
    async def webhooks(self, *, job_id: str | None = None) -> list[Webhook]:
        """The account's webhooks, oldest first; or that of one job, given as its `webhook_url`."""
        page = await self._document("GET", "/webhooks", params={} if job_id is None else {"job_id": job_id})
        return [Webhook.model_validate(item) for item in page["items"]]

    @Operation
    async def webhook(self, webhook_id: str) -> Webhook:
        """Read one."""
        return Webhook.model_validate(await self._document("GET", f"/webhooks/{webhook_id}"))

    @Operation
    async def create_webhook(
        self, url: str, *, events: Sequence[str] = (), description: str = "", secret: str | None = None
    ) -> Webhook:
        """Have a server told of all jobs of the account; the answer has its secret, this once.

        Raises:
            ServiceRefused: the URL is refused, or there are as many as there may be (`too_many_endpoints`).
        """
        wish: dict[str, Any] = {"url": url, "events": list(events), "description": description}
        if secret is not None:
            wish["secret"] = secret
        return Webhook.model_validate(await self._document("POST", "/webhooks", json=wish))

    @Operation
    async def change_webhook(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        state: str | None = None,
    ) -> Webhook:
        """Change what is given; `state` is `enabled` or `disabled`."""
        given = {"url": url, "events": events, "description": description, "state": state}
        wish = {name: value for name, value in given.items() if value is not None}
        return Webhook.model_validate(
            await self._document("PATCH", f"/webhooks/{webhook_id}", json=wish, repeatable=True)
        )

    @Operation
    async def delete_webhook(self, webhook_id: str) -> None:
        """Delete one with its log; that of a job lives as long as the job."""
        await self._request("DELETE", f"/webhooks/{webhook_id}")

    @Operation
    async def enable_webhook(self, webhook_id: str) -> Webhook:
        """Have it told from now on; what it missed can be replayed."""
        return Webhook.model_validate(await self._document("POST", f"/webhooks/{webhook_id}/enable", repeatable=True))

    @Operation
    async def rotate_webhook_secret(self, webhook_id: str, *, secret: str | None = None) -> Webhook:
        """Get a new secret; until `previous_secret_expires_at` the one before signs as well."""
        wish = {} if secret is None else {"secret": secret}
        return Webhook.model_validate(await self._document("POST", f"/webhooks/{webhook_id}/rotate", json=wish))

    @Operation
    async def ping_webhook(self, webhook_id: str) -> Delivery:
        """Send `webhook.ping`; read the delivery to see how it went."""
        return Delivery.model_validate(await self._document("POST", f"/webhooks/{webhook_id}/ping"))

    @Stream
    async def deliveries(
        self, webhook_id: str, *, state: str | None = None, page_size: int = 100
    ) -> AsyncIterator[Delivery]:
        """What was, is and will be sent to a webhook, newest first; in one state only if it is given."""
        query: dict[str, Any] = {"limit": page_size} if state is None else {"limit": page_size, "state": state}
        async for item in self._pages(f"/webhooks/{webhook_id}/deliveries", query):
            yield Delivery.model_validate(item)

    @Operation
    async def delivery(self, delivery_id: str) -> Delivery:
        """What was sent, and how each attempt went."""
        return Delivery.model_validate(await self._document("GET", f"/webhooks/deliveries/{delivery_id}"))

    @Operation
    async def replay_delivery(self, delivery_id: str) -> Delivery:
        """Send the same body once more, to where the webhook is now; returns the new delivery."""
        return Delivery.model_validate(await self._document("POST", f"/webhooks/deliveries/{delivery_id}/replay"))
