// How states, stages, sizes and times are said.

import type { JobKind, JobState, JobSummary, StageState } from "./api/types";

export const STATE_WORDS: Record<JobState | StageState, string> = {
  queued: "Queued",
  running: "Running",
  succeeded: "Succeeded",
  failed: "Failed",
  canceled: "Canceled",
  expired: "Expired",
  waiting: "Waiting",
  runnable: "Ready",
};

export const KIND_WORDS: Record<JobKind, string> = {
  personalize: "Subject in a style",
  train: "Training",
  merge: "Merge",
  generate: "Drawing",
};

const STAGE_WORDS: Record<string, string> = {
  loras: "Learn subject and style",
  content_lora: "Learn the subject",
  style_lora: "Learn the style",
  merge: "Merge both",
  package: "Draw the preview",
  generate: "Draw the pictures",
};

export const stageWords = (name: string): string => STAGE_WORDS[name] ?? name;

/** What a picture of a running training shows, by its name: training_content_000100. */
export function previewWords(name: string): string {
  const [, side, step] = /^training_(content|style)_(\d+)$/.exec(name) ?? [];
  return step === undefined ? "" : `${side === "content" ? "Subject" : "Style"}, step ${Number(step)}`;
}

export function bytes(count: number): string {
  if (count < 1024) return `${count} B`;
  const kib = count / 1024;
  return kib < 1024 ? `${trimmed(kib)} KiB` : `${trimmed(kib / 1024)} MiB`;
}

const trimmed = (amount: number): string => amount.toFixed(amount < 10 ? 1 : 0);

export function duration(seconds: number): string {
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 10) return `${minutes} min ${whole % 60} s`;
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const instant = (text: string): string =>
  new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

export const percent = (fraction: number): string => `${Math.floor(fraction * 100)}%`;

/** The random end of an id: its beginning is the time, which neighbours share. */
export const shortId = (id: string): string => id.slice(-8);

/** What a job is called: its name, or the part of its id that tells it from others. */
export const jobName = ({ id, name }: Pick<JobSummary, "id" | "name">): string => name ?? shortId(id);

export const secondsBetween = (from: string, to: string): number => (Date.parse(to) - Date.parse(from)) / 1000;
