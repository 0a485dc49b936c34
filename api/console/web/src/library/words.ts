// How LoRAs of the library are said.

import type { Lora, LoraRole } from "../api/loras";

export const ROLE_WORDS: Record<LoraRole, string> = {
  content: "Subject",
  style: "Style",
  merged: "Merged",
  other: "Other",
};

const FORMAT_WORDS: Record<string, string> = {
  diffusers: "diffusers",
  kohya: "ComfyUI and A1111",
  peft: "PEFT",
  other: "as it came",
};

export const formatWords = (format: string): string => FORMAT_WORDS[format] ?? format;

/** What is known of it, in a line. */
export function loraFacts({ base_model, rank, trigger }: Lora): string {
  const parts = [
    base_model === null ? "base model not known" : `for ${base_model}`,
    rank === null ? "" : `rank ${rank}`,
    trigger === null ? "" : `called by “${trigger}”`,
  ];
  return parts.filter(Boolean).join(" · ");
}

/** Tags as they are written in one line, and back. */
export const tagLine = (tags: readonly string[]): string => tags.join(", ");
export const tagsOf = (line: string): string[] => line.split(",").map((tag) => tag.trim()).filter((tag) => tag !== "");
