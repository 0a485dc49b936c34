// What the reader is putting together, for as long as it was not sent: it stays while other rooms are looked at.

import type { Draft } from "./draft.svelte";
import type { Drawing } from "./drawing.svelte";

class Desk {
  draft = $state.raw<Draft | null>(null);
  drawing: Drawing | null = null;

  /** Whether something lies there that cannot be had back but by choosing it again. */
  get begun(): boolean {
    return this.draft?.begun ?? false;
  }

  sent(): void {
    this.draft?.release();
    this.draft = null;
  }

  clear(): void {
    this.sent();
    this.drawing = null;
  }
}

export const desk = new Desk();
