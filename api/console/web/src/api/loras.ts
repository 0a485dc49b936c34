// The library: LoRAs that jobs made, and those that were sent in.

import { query, read, request, send } from "./request";

export type LoraRole = "content" | "style" | "merged" | "other";
export const LORA_ROLES: readonly LoraRole[] = ["content", "style", "merged", "other"];

export interface LoraFile {
  format: string;
  filename: string;
  sha256: string;
  bytes: number;
}

export interface Lora {
  id: string;
  name: string;
  tags: string[];
  role: LoraRole;
  base_model: string | null;
  rank: number | null;
  trigger: string | null;
  source: "job" | "upload";
  job_id: string | null;
  /** Whether it stays when its job goes; what was sent in always does. */
  kept: boolean;
  created_at: string;
  files: LoraFile[];
}

export interface LoraPage {
  items: Lora[];
  next_cursor: string | null;
}

export interface LoraFilter {
  roles?: readonly LoraRole[];
  tag?: string | null;
  /** Only those that this job made. */
  job_id?: string;
}

export interface LoraUpload {
  name: string;
  tags: string[];
  role: LoraRole;
  base_model: string;
  trigger: string;
}

export const listLoras = ({ roles, ...filter }: LoraFilter, cursor: string | null, limit: number): Promise<LoraPage> =>
  read(`loras${query({ role: roles, ...filter, cursor, limit })}`);

export const readLora = (id: string): Promise<Lora> => read(`loras/${id}`);

/** The LoRAs that a job made, as far as they are in the library. */
export const lorasOf = async (jobId: string): Promise<Lora[]> => (await listLoras({ job_id: jobId }, null, 100)).items;

export const changeLora = (id: string, wish: { name?: string; tags?: string[]; kept?: true }): Promise<Lora> =>
  send("PATCH", `loras/${id}`, wish);

export async function deleteLora(id: string): Promise<void> {
  await request(`loras/${id}`, { method: "DELETE" });
}

/** A link to a file of a LoRA that works without a key for a while. */
export async function lookUpFile(id: string, format: string): Promise<LoraFile & { url: string }> {
  const { files } = await read<{ files: (LoraFile & { url: string })[] }>(`loras/${id}`);
  const file = files.find((each) => each.format === format);
  if (file === undefined) throw new Error("This LoRA has no such file any more. Load the page again.");
  return file;
}

/** Send in a LoRA's file with what is said of it; what is empty is left to the service. */
export function uploadLora(file: File, { tags, ...words }: LoraUpload, idempotencyKey: string): Promise<Lora> {
  const form = new FormData();
  form.append("file", file);
  for (const [name, value] of Object.entries(words)) if (value !== "") form.append(name, value);
  for (const tag of tags) form.append("tags", tag);
  return read("loras", { method: "POST", body: form, headers: { "Idempotency-Key": idempotencyKey } });
}
