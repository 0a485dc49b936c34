// Follows one job until it ends: its events as they come, the job itself after each, and its log.
// While no stream can be had, the job is read at intervals instead.

import { readJob, readLogs } from "../api/jobs";
import { Problem, said } from "../api/request";
import { openEvents, type ServerEvent } from "../api/events";
import type { Job, LogLine } from "../api/types";
import { type Curve, Losses } from "./losses";

export const ENDED = new Set(["succeeded", "failed", "canceled", "expired"]);

const REREAD_MS = 1000;
const RETRY_MS = 2000;
/** A place in the queue changes without an event of the job's own. */
const QUEUE_MS = 5000;
/** Three times the service's heartbeat. */
const SILENCE_MS = 45_000;
const LOG_LINES = 500;
const RENEW_BEFORE_MS = 60_000;

export type Connection = "live" | "polling" | "ended";

interface ProgressData {
  data: { stage?: string; step?: number; loss?: number | null };
}

export class Following {
  job = $state.raw<Job | null>(null);
  log = $state.raw<LogLine[]>([]);
  curves = $state.raw<Curve[]>([]);
  /** The first losses are not told any more. */
  partial = $state(false);
  connection = $state<Connection>("polling");
  /** Why the job cannot be read now. */
  complaint = $state("");
  /** There is no such job, or the key may not see it: asking again is of no use. */
  missing = $state(false);

  #id: string;
  #stop = new AbortController();
  #losses = new Losses();
  #lastEventId = "";
  #lastLine = 0;
  #reading: Promise<void> | null = null;
  #again = false;

  constructor(id: string) {
    this.#id = id;
    void this.#run();
  }

  end(): void {
    this.#stop.abort();
  }

  /** Take what an action answered. */
  take(job: Job): void {
    this.job = job;
  }

  async #run(): Promise<void> {
    await this.#read();
    while (!this.#over()) {
      await this.#listen();
      this.connection = "polling";
      await this.#read();
      if (!this.#over()) await this.#sleep(RETRY_MS);
    }
    if (this.#stop.signal.aborted) return;
    await this.#listen(); // a job that had ended before still has a curve to show
    this.connection = "ended";
    await this.#renewLinks();
  }

  #over(): boolean {
    return this.#stop.signal.aborted || this.missing || (this.job !== null && ENDED.has(this.job.state));
  }

  /** Take the events of one stream until it ends, breaks or falls silent. */
  async #listen(): Promise<void> {
    if (this.missing) return;
    const broken = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, broken.signal]);
    let alarm = setTimeout(() => broken.abort(), SILENCE_MS);
    const queue = setInterval(() => this.job?.state === "queued" && this.#readSoon(), QUEUE_MS);
    try {
      const events = await openEvents(this.#id, this.#lastEventId, signal);
      if (events === null) return;
      this.connection = "live";
      for await (const event of events) {
        clearTimeout(alarm);
        alarm = setTimeout(() => broken.abort(), SILENCE_MS);
        if (event !== null) this.#hear(event);
      }
    } catch {
      // The caller reads the job instead; that says what is wrong, if anything is.
    } finally {
      clearTimeout(alarm);
      clearInterval(queue);
    }
  }

  #hear(event: ServerEvent): void {
    if (event.id !== "") this.#lastEventId = event.id;
    if (event.type === "gap" && this.#lastEventId === "") this.partial = true;
    if (event.type === "job.progress") {
      const { stage, step, loss } = (JSON.parse(event.data) as ProgressData).data;
      if (stage !== undefined && step !== undefined && typeof loss === "number") {
        this.#losses.add(stage, step, loss);
      }
    }
    this.#readSoon();
  }

  /** Read the job after an event, at most once in a while however many events come. */
  #readSoon(): void {
    this.#again = true;
    this.#reading ??= this.#readWhileAsked().finally(() => (this.#reading = null));
  }

  async #readWhileAsked(): Promise<void> {
    while (this.#again && !this.#stop.signal.aborted) {
      await this.#sleep(REREAD_MS / 10); // events come in bursts, above all the first ones
      this.#again = false;
      this.curves = this.#losses.curves();
      if (!this.#over()) await this.#read();
      await this.#sleep(REREAD_MS);
    }
  }

  async #read(): Promise<void> {
    try {
      this.job = await readJob(this.#id);
      await this.#readLog();
      this.complaint = "";
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      this.complaint = said(error);
      this.missing = error instanceof Problem && [401, 404, 410].includes(error.document.status);
    }
  }

  async #readLog(): Promise<void> {
    for (;;) {
      const page = await readLogs(this.#id, this.#lastLine);
      const fresh = page.items.filter(({ id }) => id > this.#lastLine); // two readings may be on their way at once
      const last = fresh.at(-1);
      if (last !== undefined) {
        this.#lastLine = last.id;
        this.log = [...this.log, ...fresh].slice(-LOG_LINES);
      }
      if (page.next_after === null) return;
    }
  }

  /** Signed links expire; reading the job again renews them. */
  async #renewLinks(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const expiry = this.job?.result?.artifacts[0]?.expires_at;
      if (expiry === undefined) return;
      const left = Date.parse(expiry) - Date.now() - RENEW_BEFORE_MS;
      await this.#sleep(Math.min(Math.max(left, RETRY_MS), 2 ** 31 - 1));
      if (!this.#stop.signal.aborted) await this.#read();
    }
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      if (this.#stop.signal.aborted) return resolve();
      const timer = setTimeout(resolve, ms);
      this.#stop.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
  }
}
