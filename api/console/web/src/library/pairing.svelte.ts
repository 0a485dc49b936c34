// Two LoRAs on their way to be merged: the first is chosen, then the one that goes with it.

import { submitBare } from "../api/jobs";
import type { Lora, LoraRole } from "../api/loras";
import { newIdempotencyKey } from "../api/request";
import type { Job, JobParams } from "../api/types";
import { SLIDER_POSITIONS } from "../jobs/draft.svelte";

/** What a LoRA of each role can be merged with. What is of another role can be either. */
const PARTNERS: Record<LoraRole, readonly LoraRole[]> = {
  content: ["style", "other"],
  style: ["content", "other"],
  other: ["content", "style", "other"],
  merged: [],
};

export const canMerge = ({ role }: Lora): boolean => PARTNERS[role].length > 0;

export class Pairing {
  first = $state.raw<Lora | null>(null);
  /** What the merge is to be called, if anything. */
  name = $state("");
  #sent = "";
  #idempotencyKey = "";

  get partners(): readonly LoraRole[] {
    return this.first === null ? [] : PARTNERS[this.first.role];
  }

  /** Why another one cannot go with the first; nothing if it can. */
  hindrance(other: Lora): string {
    if (this.first === null || other.id === this.first.id) return "This is the first of the two.";
    const [one, two] = [this.first.base_model, other.base_model];
    if (one !== null && two !== null && one !== two) return `It is for another base model, ${two}.`;
    return "";
  }

  /** Merge the first and another; sent again after a lost answer, it is done once. */
  merge(other: Lora): Promise<Job> {
    if (this.first === null) throw new Error("there is no first LoRA");
    const [content, style] = this.#sides(this.first, other);
    const params: JobParams = { kind: "merge", content_lora_id: content.id, style_lora_id: style.id, slider: SLIDER_POSITIONS };
    if (this.name.trim() !== "") params.name = this.name.trim();
    const sent = JSON.stringify(params);
    if (sent !== this.#sent) this.#idempotencyKey = newIdempotencyKey();
    this.#sent = sent;
    return submitBare(params, this.#idempotencyKey);
  }

  #sides(first: Lora, other: Lora): [content: Lora, style: Lora] {
    const turned = first.role === "style" || other.role === "content";
    return turned ? [other, first] : [first, other];
  }
}
