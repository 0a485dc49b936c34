// The account's API keys. Only a key with the scope `admin` may ask for them.

import { query, read, request, send } from "./request";

export type KeyState = "active" | "rotated" | "expired" | "revoked";

export interface ApiKey {
  id: string;
  prefix: string;
  label: string;
  scopes: string[];
  state: KeyState;
  is_current: boolean;
  created_at: string;
  last_used_at: string | null;
  expires_at: string | null;
}

export interface ApiKeyWithSecret extends ApiKey {
  key: string;
}

export interface KeyWish {
  label: string;
  scopes: string[];
  expires_in_days: number | null;
}

export const listKeys = async (ended: boolean): Promise<ApiKey[]> =>
  (await read<{ items: ApiKey[] }>(`keys${query({ ended: String(ended) })}`)).items;

export const createKey = (wish: KeyWish): Promise<ApiKeyWithSecret> => send("POST", "keys", wish);

export const rotateKey = (id: string): Promise<ApiKeyWithSecret> => send("POST", `keys/${id}/rotate`);

export async function revokeKey(id: string): Promise<void> {
  await request(`keys/${id}`, { method: "DELETE" });
}
