// The receipt of the job that was deleted last, until the reader puts it away.

import type { Receipt } from "../api/types";
import { bytes } from "../words";

interface Deletion {
  /** What the job was called. */
  name: string;
  receipt: Receipt;
  /** Names of its LoRAs that stay in the library. */
  kept: string[];
}

class Deletions {
  last = $state.raw<Deletion | null>(null);
}

export const deletions = new Deletions();

const THINGS: Record<string, [one: string, many: string]> = {
  inputs: ["picture or file that came with it", "pictures or files that came with it"],
  checkpoints: ["file of checkpoints", "files of checkpoints"],
  previews: ["picture that it drew", "pictures that it drew"],
  artifacts: ["other result", "other results"],
  logs: ["line of its log", "lines of its log"],
};

/** What was erased, a line for each kind of thing that there was. */
export const erasedWords = ({ erased }: Receipt): string[] =>
  Object.entries(erased)
    .filter(([, { count }]) => count > 0)
    .map(([name, { count, bytes: size }]) => `${count} ${(THINGS[name] ?? [name, name])[count === 1 ? 0 : 1]} (${bytes(size)})`);
