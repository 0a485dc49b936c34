// A list that comes in pages by cursor, the newest first. Pages are read again while they are looked at.

import { said } from "./api/request";

export interface Page<Item> {
  items: Item[];
  next_cursor: string | null;
}

const REFRESH_MS = 5000;

export class Paging<Item> {
  page = $state.raw<Page<Item> | null>(null);
  complaint = $state("");
  /** Cursors of the pages before this one; the first page has none. */
  #trail = $state.raw<(string | null)[]>([null]);
  #newest = 0;

  constructor(readonly fetch: (cursor: string | null) => Promise<Page<Item>>) {}

  get number(): number {
    return this.#trail.length;
  }

  /** Keep the page fresh until the answer is called. For an effect. */
  follow(): () => void {
    const cursor = this.#trail.at(-1) ?? null;
    void this.#load(cursor);
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") void this.#load(cursor);
    }, REFRESH_MS);
    return () => clearInterval(timer);
  }

  /** Read the page again at once. */
  refresh(): Promise<void> {
    return this.#load(this.#trail.at(-1) ?? null);
  }

  older(): void {
    const next = this.page?.next_cursor;
    if (next) this.#trail = [...this.#trail, next];
  }

  newer(): void {
    if (this.#trail.length > 1) this.#trail = this.#trail.slice(0, -1);
  }

  async #load(cursor: string | null): Promise<void> {
    const turn = ++this.#newest;
    try {
      const answer = await this.fetch(cursor);
      if (turn !== this.#newest) return; // the reader has gone on meanwhile
      this.page = answer;
      this.complaint = "";
    } catch (error) {
      if (turn === this.#newest) this.complaint = said(error);
    }
  }
}
