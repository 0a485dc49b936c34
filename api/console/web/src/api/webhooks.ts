// Servers that are told of jobs, and the log of what they were sent.

import { query, read, request, send } from "./request";

export type DeliveryState = "pending" | "delivered" | "exhausted";
export const DELIVERY_STATES: readonly DeliveryState[] = ["pending", "delivered", "exhausted"];

export interface Endpoint {
  id: string;
  url: string;
  events: string[];
  description: string;
  state: "enabled" | "disabled";
  disabled_at: string | null;
  disabled_reason: string | null;
  previous_secret_expires_at: string | null;
  created_at: string;
}

export interface EndpointWithSecret extends Endpoint {
  secret: string;
}

export interface EndpointWish {
  url: string;
  events: string[];
  description: string;
}

export interface Delivery {
  id: string;
  job_id: string | null;
  type: string;
  state: DeliveryState;
  attempts: number;
  next_attempt_at: string | null;
  last_status: number | null;
  last_error: string | null;
  replay_of: string | null;
  created_at: string;
  delivered_at: string | null;
}

export interface DeliveryDetail extends Delivery {
  webhook_id: string;
  url: string;
  body: string;
  log: { attempt: number; started_at: string; duration_ms: number; status: number | null; error: string | null }[];
}

export interface DeliveryPage {
  items: Delivery[];
  next_cursor: string | null;
}

export const listEndpoints = async (): Promise<Endpoint[]> => (await read<{ items: Endpoint[] }>("webhooks")).items;

export const readEndpoint = (id: string): Promise<Endpoint> => read(`webhooks/${id}`);

export const createEndpoint = (wish: EndpointWish): Promise<EndpointWithSecret> => send("POST", "webhooks", wish);

export const changeEndpoint = (id: string, wish: Partial<EndpointWish & Pick<Endpoint, "state">>): Promise<Endpoint> =>
  send("PATCH", `webhooks/${id}`, wish);

export const enableEndpoint = (id: string): Promise<Endpoint> => send("POST", `webhooks/${id}/enable`);

export const rotateSecret = (id: string): Promise<EndpointWithSecret> => send("POST", `webhooks/${id}/rotate`);

export const pingEndpoint = (id: string): Promise<Delivery> => send("POST", `webhooks/${id}/ping`);

export async function deleteEndpoint(id: string): Promise<void> {
  await request(`webhooks/${id}`, { method: "DELETE" });
}

export const listDeliveries = (
  id: string,
  state: DeliveryState | null,
  cursor: string | null,
  limit: number,
): Promise<DeliveryPage> => read(`webhooks/${id}/deliveries${query({ state, cursor, limit })}`);

export const readDelivery = (id: string): Promise<DeliveryDetail> => read(`webhooks/deliveries/${id}`);

export const replayDelivery = (id: string): Promise<Delivery> => send("POST", `webhooks/deliveries/${id}/replay`);
