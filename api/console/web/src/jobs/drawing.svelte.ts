// A job that draws with LoRAs of the library, as it is put together.

import { checkBare, submitBare } from "../api/jobs";
import type { Lora } from "../api/loras";
import type { FieldError, Job, JobCheck, JobParams } from "../api/types";
import { isWhole, JobForm, NUMBER, WHOLE } from "./form.svelte";

export const MOST_LORAS = 4;
export const MOST_PROMPTS = 16;

export type Pointer = "/name" | "/base_model" | "/images_per_prompt" | "/steps/sampling" | "/guidance_scale" | "/resolution_px" | "/seed";

const WHOLE_NUMBERS: readonly Pointer[] = ["/images_per_prompt", "/steps/sampling", "/resolution_px", "/seed"];
const AMOUNTS = ["images_per_prompt", "guidance_scale", "resolution_px", "seed"] as const;

/** One LoRA to draw with. */
export interface Pick {
  id: string;
  name: string;
  /** The words that call it, if they are known. */
  trigger: string | null;
  base: string | null;
  strength: string;
}

/** The words that call a LoRA, as the beginning of a prompt. */
const calling = ({ trigger }: Pick): string => (trigger === null ? "" : `a ${trigger.replace(/^an? /, "")}`);

export class Drawing extends JobForm<Pointer> {
  picks = $state<Pick[]>([]);
  prompts = $state<string[]>([""]);

  add({ id, name, trigger, base_model }: Lora, strength = 1): void {
    if (this.picks.length >= MOST_LORAS || this.picks.some((pick) => pick.id === id)) return;
    const pick = { id, name, trigger, base: base_model, strength: String(strength) };
    this.picks.push(pick);
    if (this.picks.length === 1 && this.prompts.join("") === "") this.prompts = [calling(pick)];
    this.forgetErrors("/loras");
  }

  remove(pick: Pick): void {
    this.picks = this.picks.filter(({ id }) => id !== pick.id);
    this.forgetErrors("/loras");
  }

  strengthen(pick: Pick, strength: string): void {
    pick.strength = strength;
    this.forgetErrors("/loras");
  }

  /** Why a LoRA cannot be added; nothing if it can. */
  hindrance({ id, base_model }: Lora): string {
    if (this.picks.some((pick) => pick.id === id)) return "chosen";
    const base = this.picks.find((pick) => pick.base !== null)?.base ?? null;
    return base === null || base_model === null || base === base_model ? "" : `for another base model, ${base_model}`;
  }

  write(place: number, prompt: string): void {
    this.prompts[place] = prompt;
    this.forgetErrors("/prompts");
  }

  addPrompt(): void {
    this.prompts.push("");
  }

  removePrompt(place: number): void {
    this.prompts = this.prompts.toSpliced(place, 1);
    this.forgetErrors("/prompts");
  }

  /** Begin as a job that drew: the same prompts and numbers. Its LoRAs are added by whoever finds them. */
  repeat({ params }: Job): void {
    if (Array.isArray(params.prompts)) this.prompts = [...params.prompts];
    const { sampling } = params;
    if (sampling === undefined) return;
    this.values = {
      "/base_model": params.base_model,
      "/images_per_prompt": String(sampling.images),
      "/steps/sampling": String(sampling.steps),
      "/guidance_scale": String(sampling.guidance_scale),
      "/resolution_px": String(sampling.resolution_px),
      "/seed": String(sampling.seed),
    };
  }

  get ready(): boolean {
    return this.prompts.every((prompt) => prompt.trim() !== "");
  }

  get missing(): string {
    return "Write what to draw: then it says here how long that takes.";
  }

  get signature(): string {
    return JSON.stringify(this.#params());
  }

  protected submit(idempotencyKey: string): Promise<Job> {
    return submitBare(this.#params(), idempotencyKey);
  }

  protected ask(signal: AbortSignal): Promise<JobCheck> {
    return checkBare(this.#params(), signal);
  }

  protected faults(): FieldError[] {
    const found: FieldError[] = [];
    const say = (pointer: string, detail: string) => found.push({ pointer, detail, code: "" });
    this.prompts.forEach((prompt, place) => {
      if (prompt.trim() === "") say(`/prompts/${place}`, this.prompts.length === 1 ? "Write what to draw." : "Write what to draw, or remove this prompt.");
    });
    this.picks.forEach(({ strength }, place) => {
      if (strength.trim() === "" || !Number.isFinite(Number(strength))) say(`/loras/${place}/strength`, "Write a number; 1 is as it was learnt.");
    });
    for (const pointer of WHOLE_NUMBERS) {
      const text = this.value(pointer);
      if (text !== "" && !isWhole(text)) say(pointer, WHOLE);
    }
    if (!Number.isFinite(Number(this.value("/guidance_scale")))) say("/guidance_scale", NUMBER);
    return found;
  }

  #params(): JobParams {
    const params: JobParams = {
      kind: "generate",
      prompts: this.prompts.map((prompt) => prompt.trim()),
      loras: this.picks.map(({ id, strength }) => ({ lora_id: id, strength: Number(strength) })),
    };
    for (const name of ["name", "base_model"] as const) {
      const value = this.value(`/${name}`);
      if (value !== "") params[name] = value;
    }
    for (const name of AMOUNTS) {
      const value = this.value(`/${name}`);
      if (value !== "") params[name] = Number(value);
    }
    const steps = this.value("/steps/sampling");
    if (steps !== "") params.steps = { sampling: Number(steps) };
    return params;
  }
}
