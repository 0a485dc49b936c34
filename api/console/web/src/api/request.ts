// Requests to the service: the key goes with each, and every refusal is a Problem.

import { key } from "./key.svelte";
import type { ProblemDocument } from "./types";

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

/** Send a request and read the document that answers it. */
export async function read<Shape>(path: string, init?: RequestInit): Promise<Shape> {
  return (await (await request(path, init)).json()) as Shape;
}

/** Send a JSON document; the answer may be empty. */
export async function send<Shape>(
  method: string,
  path: string,
  document?: unknown,
  headers: Record<string, string> = {},
  signal: AbortSignal | null = null,
): Promise<Shape> {
  const body = document === undefined ? {} : { body: JSON.stringify(document), headers: { ...headers, "Content-Type": "application/json" } };
  const answer = await request(path, { method, headers, signal, ...body });
  return (answer.status === 204 ? undefined : await answer.json()) as Shape;
}

/** A query of those values that are there; lists give one pair each. */
export function query(values: Record<string, string | number | null | undefined | readonly string[]>): string {
  const pairs = Object.entries(values).flatMap(([name, value]) =>
    value === null || value === undefined ? [] : [value].flat().map((each) => [name, String(each)]),
  );
  return pairs.length === 0 ? "" : `?${new URLSearchParams(pairs)}`;
}

/** What to show of anything that was thrown. */
export const said = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** A new idempotency key. `crypto.randomUUID` would be missing where the console is served over plain HTTP. */
export function newIdempotencyKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
