// Requests to the service: the key goes with each, and every refusal is a Problem.

import { key } from "./key.svelte";
import type { Job, JobPage, JobParams, JobState, Limits, LogPage, ProblemDocument, RecipePage } from "./types";

/** An answer that is no success. */
export class Problem extends Error {
  constructor(readonly document: ProblemDocument) {
    super(document.detail ?? document.title);
  }
}

/** The service could not be reached, or broke off; whether it did anything is unknown. */
export class Unreachable extends Error {
  constructor() {
    super("The service does not answer. Is it still running?");
  }
}

/** Send a request; the body is not read yet. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key.text !== null) headers.set("Authorization", `Bearer ${key.text}`);
  let answer: Response;
  try {
    answer = await fetch(new URL(path, document.baseURI), { ...init, headers, cache: "no-store" });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Unreachable();
  }
  if (answer.ok) return answer;
  const problem = await readProblem(answer);
  if (answer.status === 401) key.refuse("The service does not accept this key.");
  throw problem;
}

async function readProblem(answer: Response): Promise<Problem> {
  const plain = { title: `The service answered ${answer.status}`, status: answer.status, code: "", retryable: false };
  try {
    return new Problem({ ...plain, ...((await answer.json()) as ProblemDocument) });
  } catch {
    return new Problem(plain); // a proxy's page, not the service's
  }
}

async function read<Shape>(path: string, init?: RequestInit): Promise<Shape> {
  return (await (await request(path, init)).json()) as Shape;
}

export const readLimits = (): Promise<Limits> => read("console.json");

export const listRecipes = (): Promise<RecipePage> => read("recipes");

export const readJob = (id: string): Promise<Job> => read(`jobs/${id}`);

export const cancelJob = (id: string): Promise<Job> => read(`jobs/${id}/cancel`, { method: "POST" });

export const stopJob = (id: string): Promise<Job> => read(`jobs/${id}/stop`, { method: "POST" });

export const retryJob = (id: string): Promise<Job> => read(`jobs/${id}/retry`, { method: "POST" });

export const readLogs = (id: string, after: number): Promise<LogPage> => read(`jobs/${id}/logs?after=${after}&limit=1000`);

export function listJobs(state: JobState | null, cursor: string | null, limit: number): Promise<JobPage> {
  const query = new URLSearchParams({ limit: String(limit) });
  if (state !== null) query.set("state", state);
  if (cursor !== null) query.set("cursor", cursor);
  return read(`jobs?${query}`);
}

/** Submit a job. Sent again with the same key after the answer was lost, it is not done twice. */
export function submitJob(params: JobParams, content: File[], style: File[], idempotencyKey: string): Promise<Job> {
  const form = new FormData();
  for (const file of content) form.append("content_images", file);
  for (const file of style) form.append("style_images", file);
  form.append("params", new Blob([JSON.stringify(params)], { type: "application/json" }));
  return read("jobs", { method: "POST", body: form, headers: { "Idempotency-Key": idempotencyKey } });
}

/** A new idempotency key. `crypto.randomUUID` would be missing where the console is served over plain HTTP. */
export function newIdempotencyKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
