// What was asked for, as far as the job's kind has it.

import type { Job, LoraConfig } from "../api/types";
import { instant, KIND_WORDS } from "../words";

export interface Fact {
  term: string;
  text: string;
}

const LORA_ROLES = { content: "Subject LoRA", style: "Style LoRA", drawing: "Drawn with" };

/** The words that call the subject in the style, as the preview was drawn with. Null: the job has no such words. */
export function jointPrompt({ params: { prompts } }: Job): string | null {
  if (Array.isArray(prompts)) return null;
  return `a ${prompts.content_trigger} ${prompts.subject_class} in ${prompts.style_trigger} style`;
}

export function facts(job: Job): Fact[] {
  const { params, images, loras } = job;
  const { prompts } = params;
  const count = (side: string): number => images.filter((image) => image.side === side).length;
  const words = Array.isArray(prompts)
    ? [{ term: "Prompts", text: prompts.join(" · ") }]
    : [
        { term: "Subject class", text: prompts.subject_class },
        { term: "Words", text: `${prompts.content_trigger}, ${prompts.style_trigger}` },
      ];
  return [
    { term: "Kind", text: KIND_WORDS[job.kind] ?? job.kind },
    ...words,
    { term: "Pictures", text: images.length === 0 ? "" : `${count("content")} of the subject, ${count("style")} of the style` },
    ...loras.map(({ role, name, strength }) => ({ term: LORA_ROLES[role], text: strength === 1 ? name : `${name}, strength ${strength}` })),
    { term: "Base model", text: params.base_model },
    { term: "Recipe", text: params.recipe },
    { term: "Training, subject", text: training(params.content) },
    { term: "Training, style", text: training(params.style) },
    { term: "Submitted", text: instant(job.created_at) },
    { term: "Kept until", text: job.expires_at === null ? "" : instant(job.expires_at) },
    { term: "Id", text: job.id },
  ].filter(({ text }) => text !== "");
}

const training = (config: LoraConfig | null | undefined): string =>
  config ? `${config.steps} steps, rank ${config.rank}, ${config.resolution_px} px, seed ${config.seed}` : "";
