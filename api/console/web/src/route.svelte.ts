// Where the reader is. The address after # belongs to the console; the path before it belongs to the API.

import { key } from "./api/key.svelte";
import { JOB_STATES, type JobState } from "./api/types";

export type Route =
  | { room: "new" }
  | { room: "jobs"; state: JobState | null }
  | { room: "job"; id: string }
  | { room: "nowhere" };

export const links = {
  new: "#/new",
  jobs: (state: JobState | null = null): string => (state === null ? "#/jobs" : `#/jobs?state=${state}`),
  job: (id: string): string => `#/jobs/${id}`,
};

function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?");
  if (path === "" || path === "/" || path === "/new") return { room: "new" };
  if (path === "/jobs") {
    const wanted = new URLSearchParams(query).get("state");
    return { room: "jobs", state: JOB_STATES.find((state) => state === wanted) ?? null };
  }
  const id = /^\/jobs\/([0-9a-f-]{36})$/.exec(path)?.[1];
  return id === undefined ? { room: "nowhere" } : { room: "job", id };
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
