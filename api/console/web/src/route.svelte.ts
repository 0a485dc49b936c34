// Where the reader is. The address after # belongs to the console; the path before it belongs to the API.

import { key } from "./api/key.svelte";
import { JOB_STATES, type JobState } from "./api/types";
import { DELIVERY_STATES, type DeliveryState } from "./api/webhooks";

export type Route =
  | { room: "new" }
  | { room: "jobs"; state: JobState | null }
  | { room: "job"; id: string }
  | { room: "webhooks" }
  | { room: "webhook"; id: string; state: DeliveryState | null }
  | { room: "nowhere" };

export const links = {
  new: "#/new",
  jobs: (state: JobState | null = null): string => `#/jobs${filter(state)}`,
  job: (id: string): string => `#/jobs/${id}`,
  webhooks: "#/webhooks",
  webhook: (id: string, state: DeliveryState | null = null): string => `#/webhooks/${id}${filter(state)}`,
};

function filter(state: string | null): string {
  return state === null ? "" : `?state=${state}`;
}

const among = <Value extends string>(values: readonly Value[], text: string | null): Value | null =>
  values.find((value) => value === text) ?? null;

function parse(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#/, "").split("?");
  const state = new URLSearchParams(search).get("state");
  if (path === "" || path === "/" || path === "/new") return { room: "new" };
  if (path === "/jobs") return { room: "jobs", state: among(JOB_STATES, state) };
  if (path === "/webhooks") return { room: "webhooks" };
  const [, things, id] = /^\/(jobs|webhooks)\/([0-9a-f-]{36})$/.exec(path) ?? [];
  if (id === undefined) return { room: "nowhere" };
  return things === "jobs" ? { room: "job", id } : { room: "webhook", id, state: among(DELIVERY_STATES, state) };
}

class Place {
  route = $state<Route>({ room: "new" });

  constructor() {
    this.#look();
    addEventListener("hashchange", () => this.#look());
  }

  /** Go there, as a click on the link would. */
  go(link: string): void {
    location.hash = link.slice(1);
  }

  #look(): void {
    key.takeFromAddress();
    this.route = parse(location.hash);
  }
}

export const place = new Place();
