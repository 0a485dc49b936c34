// A job that is being put together: its fields, what is wrong with them, what the service says of it, and how it is sent.

import { newIdempotencyKey, Problem, said } from "../api/request";
import type { FieldError, Job, JobCheck } from "../api/types";

export const WHOLE = "Write a whole number, or leave it empty.";
export const NUMBER = "Write a number, or leave it empty.";

export const isWhole = (text: string): boolean => /^\d+$/.test(text) && Number.isSafeInteger(Number(text));

export abstract class JobForm<Pointer extends string> {
  /** Fields that hold one word or number, by the JSON pointer that the service names them by. */
  values = $state<Partial<Record<Pointer, string>>>({});
  errors = $state<FieldError[]>([]);
  /** What the service says of the job as it is; null until it has looked. */
  check = $state.raw<JobCheck | null>(null);
  /** Why the service could not look at it, if no field is at fault. */
  obstacle = $state("");
  /** Somebody tried to send it as it was. */
  tried = $state(false);
  /** What is wrong with the request as a whole. */
  complaint = $state("");
  sending = $state(false);

  #idempotencyKey = "";
  #sent = "";

  /** Whether there is anything to look at. */
  abstract get ready(): boolean;
  /** Said while there is not. */
  abstract get missing(): string;
  /** Another one as soon as anything that would be sent is another. */
  abstract get signature(): string;

  /** Of the files that are sent. */
  get bytes(): number {
    return 0;
  }

  /** Everything that can be said against it without asking the service. */
  protected abstract faults(): FieldError[];
  protected abstract submit(idempotencyKey: string): Promise<Job>;
  protected abstract ask(signal: AbortSignal): Promise<JobCheck>;

  /** Settles when everything that was chosen has been looked at. */
  protected async settled(): Promise<void> {}

  set(pointer: Pointer, value: string): void {
    this.values[pointer] = value;
    this.forgetErrors(pointer);
  }

  /** What a field of the form shows. */
  field(pointer: Pointer): { pointer: Pointer; value: string; set: (value: string) => void; error: string } {
    return {
      pointer,
      value: this.values[pointer] ?? "",
      set: (value) => this.set(pointer, value),
      error: this.error(pointer),
    };
  }

  error(pointer: string): string {
    return this.errors.find((error) => error.pointer === pointer)?.detail ?? "";
  }

  /** Send the job; null if something is wrong, which `errors` and `complaint` then say. */
  async send(): Promise<Job | null> {
    this.complaint = "";
    this.tried = true;
    this.sending = true;
    try {
      await this.settled();
      this.errors = this.faults();
      return this.errors.length > 0 ? null : await this.submit(this.#key());
    } catch (error) {
      if (error instanceof Problem) this.errors = error.document.errors ?? [];
      this.complaint = said(error);
      return null;
    } finally {
      this.sending = false;
    }
  }

  /** Have the service look at the job as it is: what it finds stands at its field. */
  async look(signal: AbortSignal): Promise<void> {
    if (this.faults().length > 0) return;
    try {
      const check = await this.ask(signal);
      this.check = check;
      this.obstacle = "";
      this.errors = check.images.flatMap(({ problem }) => problem ?? []);
    } catch (error) {
      if (signal.aborted) return;
      this.check = null;
      this.errors = error instanceof Problem ? (error.document.errors ?? []) : [];
      this.obstacle = this.errors.length > 0 ? "" : said(error);
    }
  }

  protected value(pointer: Pointer): string {
    return (this.values[pointer] ?? "").trim();
  }

  protected forgetErrors(prefix: string): void {
    this.check = null; // it was of another job
    this.errors = this.errors.filter(({ pointer }) => pointer !== prefix && !pointer.startsWith(`${prefix}/`));
  }

  /** The same key for as long as the same is sent: after a lost answer, sending again does nothing twice. */
  #key(): string {
    const sent = this.signature;
    if (sent !== this.#sent) this.#idempotencyKey = newIdempotencyKey();
    this.#sent = sent;
    return this.#idempotencyKey;
  }
}
