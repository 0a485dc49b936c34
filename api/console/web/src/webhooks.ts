// How webhooks, their events and the state of deliveries are said.

import type { DeliveryState, Endpoint } from "./api/webhooks";

export const EVENTS: readonly { name: string; words: string }[] = [
  { name: "job.queued", words: "A job was submitted" },
  { name: "job.started", words: "A job has started" },
  { name: "job.stage_changed", words: "A stage began or ended" },
  { name: "job.progress", words: "Progress, often" },
  { name: "job.stop_requested", words: "Somebody asked for an early stop" },
  { name: "job.cancel_requested", words: "Somebody asked to cancel" },
  { name: "job.succeeded", words: "A job has succeeded" },
  { name: "job.failed", words: "A job has failed" },
  { name: "job.canceled", words: "A job was canceled" },
  { name: "job.expired", words: "A job has expired" },
];

export const DELIVERY_WORDS: Record<DeliveryState, string> = {
  pending: "On its way",
  delivered: "Delivered",
  exhausted: "Given up",
};

const REASONS: Record<string, string> = {
  gone: "The server answered 410: it says that it is gone for good. Enable the webhook once it is back.",
  exhausted: "The server took nothing for about three days. Mend it, enable the webhook, and replay what it missed.",
  by_owner: "You disabled it. Nothing is sent until you enable it again.",
};

/** Why an endpoint is told of nothing. */
export const disabledWords = ({ disabled_reason }: Endpoint): string =>
  REASONS[disabled_reason ?? ""] ?? "Nothing is sent until you enable it again.";

/** What an endpoint is told of. */
export const eventsWords = ({ events }: Endpoint): string =>
  events.length === 0 ? "Told of a job's submission, start, stages and end" : `Told of ${events.join(", ")}`;
