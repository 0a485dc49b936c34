// What was asked for, as far as the job's kind has it.

import type { Job, LoraConfig } from "../api/types";
import { duration, instant, KIND_WORDS } from "../words";

export interface Fact {
  term: string;
  text: string;
  /** It is wanted elsewhere, letter by letter. */
  copied?: true;
}

const LORA_ROLES = { content: "Subject LoRA", style: "Style LoRA", drawing: "Drawn with" };

/** The words that call what was learnt, as the preview was drawn with. Null: the job has no such words. */
export function jointPrompt({ kind, params: { prompts, content, style } }: Job): string | null {
  if (Array.isArray(prompts)) return null;
  const subject = kind === "train" && !content ? prompts.subject_class : `${prompts.content_trigger} ${prompts.subject_class}`;
  return kind === "train" && (content || !style) ? `a ${subject}` : `a ${subject} in ${prompts.style_trigger} style`;
}

export function facts(job: Job): Fact[] {
  const { params, images, loras } = job;
  const { prompts } = params;
  const count = (side: string): number => images.filter((image) => image.side === side).length;
  const counted = (side: string, word: string): string => (count(side) === 0 ? "" : `${count(side)} of the ${word}`);
  const words = Array.isArray(prompts)
    ? [{ term: "Prompts", text: prompts.join(" · ") }]
    : [
        { term: "Subject class", text: prompts.subject_class },
        { term: "Words", text: `${prompts.content_trigger}, ${prompts.style_trigger}` },
      ];
  return [
    { term: "Kind", text: KIND_WORDS[job.kind] ?? job.kind },
    ...words,
    { term: "Pictures", text: [counted("content", "subject"), counted("style", "style")].filter(Boolean).join(", ") },
    ...loras.map(({ role, name, strength }) => ({ term: LORA_ROLES[role], text: strength === 1 ? name : `${name}, strength ${strength}` })),
    { term: "Base model", text: params.base_model },
    { term: "Recipe", text: params.recipe },
    { term: "Training, subject", text: training(params.content) },
    { term: "Training, style", text: training(params.style) },
    { term: "Submitted", text: instant(job.created_at) },
    { term: "Kept until", text: job.expires_at === null ? "" : instant(job.expires_at) },
    { term: "Worker time (GPU-seconds)", text: spent(job) },
    { term: "Job id", text: job.id, copied: true as const },
    { term: "Request id", text: job.request_id ?? "", copied: true as const },
  ].filter(({ text }) => text !== "");
}

/** What workers have spent on it, in words where those are shorter to grasp. */
function spent({ timings: { worker_seconds } }: Job): string {
  const seconds = `${worker_seconds.toFixed(worker_seconds < 10 ? 1 : 0)} s`;
  return worker_seconds < 60 ? seconds : `${seconds}, or ${duration(worker_seconds)}`;
}

const training = (config: LoraConfig | null | undefined): string =>
  config ? `${config.steps} steps, rank ${config.rank}, ${config.resolution_px} px, seed ${config.seed}` : "";
