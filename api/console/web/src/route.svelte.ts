// Where the reader is. The address after # belongs to the console; the path before it belongs to the API.

import { key } from "./api/key.svelte";
import { query } from "./api/request";
import { LORA_ROLES, type LoraRole } from "./api/loras";
import { JOB_KINDS, JOB_STATES, type JobKind, type JobState } from "./api/types";
import { DELIVERY_STATES, type DeliveryState } from "./api/webhooks";

export type Route =
  | { room: "new" }
  | { room: "draw"; loras: string[]; job: string | null }
  | { room: "jobs"; state: JobState | null; kind: JobKind | null }
  | { room: "job"; id: string }
  | { room: "library"; role: LoraRole | null; tag: string | null }
  | { room: "keys" }
  | { room: "webhooks" }
  | { room: "webhook"; id: string; state: DeliveryState | null }
  | { room: "nowhere" };

export const links = {
  new: "#/new",
  /** Draw with these LoRAs, or with what a job made, or as a job drew. */
  draw: (given: { lora?: readonly string[]; job?: string } = {}): string => `#/draw${query(given)}`,
  jobs: (shown: { state?: JobState | null; kind?: JobKind | null } = {}): string => `#/jobs${query(shown)}`,
  job: (id: string): string => `#/jobs/${id}`,
  webhooks: "#/webhooks",
  webhook: (id: string, state: DeliveryState | null = null): string => `#/webhooks/${id}${query({ state })}`,
  library: (shown: { role?: LoraRole | null; tag?: string | null } = {}): string => `#/library${query(shown)}`,
  keys: "#/keys",
};

const among = <Value extends string>(values: readonly Value[], text: string | null): Value | null =>
  values.find((value) => value === text) ?? null;

function parse(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#/, "").split("?");
  const values = new URLSearchParams(search);
  const state = values.get("state");
  if (path === "" || path === "/" || path === "/new") return { room: "new" };
  if (path === "/draw") return { room: "draw", loras: values.getAll("lora"), job: values.get("job") };
  if (path === "/jobs") return { room: "jobs", state: among(JOB_STATES, state), kind: among(JOB_KINDS, values.get("kind")) };
  if (path === "/library") return { room: "library", role: among(LORA_ROLES, values.get("role")), tag: values.get("tag") };
  if (path === "/keys") return { room: "keys" };
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
