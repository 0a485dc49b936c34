// Jobs, and what one can be made of.

import { query, read, send } from "./request";
import type { Job, JobCheck, JobPage, JobKind, JobParams, JobState, Limits, LogPage, Receipt, RecipePage } from "./types";

export const readLimits = (): Promise<Limits> => read("console.json");

export const listRecipes = (): Promise<RecipePage> => read("recipes");

export const readJob = (id: string): Promise<Job> => read(`jobs/${id}`);

export const cancelJob = (id: string): Promise<Job> => send("POST", `jobs/${id}/cancel`);

export const stopJob = (id: string): Promise<Job> => send("POST", `jobs/${id}/stop`);

export const retryJob = (id: string): Promise<Job> => send("POST", `jobs/${id}/retry`);

export const deleteJob = (id: string): Promise<Receipt> => send("DELETE", `jobs/${id}`);

export const readLogs = (id: string, after: number): Promise<LogPage> => read(`jobs/${id}/logs?after=${after}&limit=1000`);

export interface JobFilter {
  state: JobState | null;
  kind: JobKind | null;
}

export const listJobs = (filter: JobFilter, cursor: string | null, limit: number): Promise<JobPage> =>
  read(`jobs${query({ ...filter, cursor, limit })}`);

/** Submit a job. Sent again with the same key after the answer was lost, it is not done twice. */
export function submitJob(params: JobParams, content: File[], style: File[], idempotencyKey: string): Promise<Job> {
  return read("jobs", { method: "POST", body: form(params, content, style), headers: { "Idempotency-Key": idempotencyKey } });
}

/** Have the service look at what would be submitted; nothing is stored. */
export function checkJob(params: JobParams, content: File[], style: File[], signal: AbortSignal): Promise<JobCheck> {
  return read("jobs?validate_only=true", { method: "POST", body: form(params, content, style), signal });
}

/** Submit a job that needs no pictures; otherwise as `submitJob`. */
export const submitBare = (params: JobParams, idempotencyKey: string): Promise<Job> =>
  send("POST", "jobs", params, { "Idempotency-Key": idempotencyKey });

/** Have the service look at a job that needs no pictures. */
export const checkBare = (params: JobParams, signal: AbortSignal): Promise<JobCheck> =>
  send("POST", "jobs?validate_only=true", params, {}, signal);

function form(params: JobParams, content: File[], style: File[]): FormData {
  const parts = new FormData();
  for (const file of content) parts.append("content_images", file);
  for (const file of style) parts.append("style_images", file);
  parts.append("params", new Blob([JSON.stringify(params)], { type: "application/json" }));
  return parts;
}
