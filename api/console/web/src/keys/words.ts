// How keys and what they may do are said.

import type { ApiKey, KeyState } from "../api/keys";
import { instant } from "../words";

export const SCOPES: readonly { name: string; words: string }[] = [
  { name: "jobs:read", words: "Look at jobs" },
  { name: "jobs:write", words: "Submit, stop and delete jobs" },
  { name: "loras:read", words: "Look at the library" },
  { name: "loras:write", words: "Change the library" },
  { name: "uploads:read", words: "Look at uploads" },
  { name: "uploads:write", words: "Upload pictures" },
  { name: "webhooks:read", words: "Look at webhooks" },
  { name: "webhooks:write", words: "Change webhooks" },
  { name: "admin", words: "Everything, keys too" },
];

const names = (part: string): string[] => SCOPES.map(({ name }) => name).filter((name) => name.endsWith(part));

/** What most keys are for. */
export const PURPOSES: readonly { name: string; words: string; scopes: readonly string[] }[] = [
  { name: "usual", words: "Everything but keys: for an app", scopes: names(":write") },
  { name: "read", words: "Only look: for a dashboard", scopes: names(":read") },
  { name: "admin", words: "Everything, keys too: for you", scopes: ["admin"] },
  { name: "own", words: "As ticked below", scopes: [] },
];

export const KEY_WORDS: Record<KeyState, string> = {
  active: "Active",
  rotated: "Being replaced",
  expired: "Expired",
  revoked: "Revoked",
};

export const isEnded = ({ state }: ApiKey): boolean => state === "expired" || state === "revoked";

/** When it was made and used, and until when it works. */
export function keyTimes(key: ApiKey): string {
  const parts = [
    `made ${instant(key.created_at)}`,
    key.last_used_at === null ? "never used" : `last used ${instant(key.last_used_at)}`,
    key.expires_at === null ? "does not expire" : `${isEnded(key) ? "ended" : "works until"} ${instant(key.expires_at)}`,
  ];
  return parts.join(" · ");
}
