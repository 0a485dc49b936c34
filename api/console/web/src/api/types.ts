// Wire shapes, as far as the console reads them. The service describes all of them in /openapi.json.

export type JobState = "queued" | "running" | "succeeded" | "failed" | "canceled" | "expired";
export const JOB_STATES: readonly JobState[] = ["queued", "running", "succeeded", "failed", "canceled", "expired"];

export type StageState = "waiting" | "runnable" | "running" | "succeeded" | "failed" | "canceled";

export interface FieldError {
  /** JSON pointer into the request: /params/rank, /content_images/3. */
  pointer: string;
  detail: string;
  code: string;
}

/** An error as the service prints it (RFC 9457). */
export interface ProblemDocument {
  title: string;
  status: number;
  code: string;
  retryable: boolean;
  detail?: string;
  request_id?: string;
  stage?: string;
  errors?: FieldError[];
}

export interface StageProgress {
  step: number;
  total: number;
  fraction: number;
  loss: number | null;
  note: string;
  steps_per_second: number | null;
  eta_seconds: number | null;
}

export interface Stage {
  name: string;
  state: StageState;
  attempt: number;
  progress: StageProgress | null;
  reused_from: string | null;
  stopped_early: boolean;
  started_at: string | null;
  finished_at: string | null;
  error: ProblemDocument | null;
}

export interface JobProgress {
  fraction: number;
  stage: string | null;
  step: number | null;
  total: number | null;
  eta_seconds: number | null;
  queue_position: number | null;
  queue_eta_seconds: number | null;
}

export type JobKind = "personalize" | "train" | "merge" | "generate";
export const JOB_KINDS: readonly JobKind[] = ["personalize", "train", "merge", "generate"];

export interface JobSummary {
  id: string;
  kind: JobKind;
  name: string | null;
  state: JobState;
  stage: string | null;
  progress: JobProgress;
  error: ProblemDocument | null;
  created_at: string;
  started_at: string | null;
  finished_at: string | null;
  cancel_requested_at: string | null;
  stop_requested_at: string | null;
  expires_at: string | null;
  retry_of: string | null;
}

export interface Artifact {
  name: string;
  filename: string;
  content_type: string;
  bytes: number;
  sha256: string;
  url: string;
  expires_at: string;
}

export interface LoraConfig {
  steps: number;
  rank: number;
  resolution_px: number;
  seed: number;
}

interface Words {
  subject_class: string;
  content_trigger: string;
  style_trigger: string;
}

/** The complete configuration of a recipe, and of a job that trains and merges. */
export interface Configuration {
  recipe: string;
  base_model: string;
  prompts: Words;
  content: LoraConfig;
  style: LoraConfig;
  merge: { method: string; steps: number };
  preview: { resolution_px: number };
}

/** The complete configuration of a job; each kind has what it needs of it. */
export interface JobConfiguration {
  recipe: string;
  base_model: string;
  /** Of a job that draws, what it draws. */
  prompts: Words | string[];
  content?: LoraConfig | null;
  style?: LoraConfig | null;
  merge?: { method: string; steps: number };
  preview?: { resolution_px: number };
  /** Of a job that draws, how. */
  sampling?: { images: number; steps: number; guidance_scale: number; resolution_px: number; seed: number };
}

/** A LoRA of the library that a job works with. */
export interface JobLora {
  role: "content" | "style" | "drawing";
  lora_id: string;
  name: string;
  strength: number;
}

/** A picture of the merge with so much of each side. */
export interface SliderPosition {
  artifact: string;
  content: number;
  style: number;
}

export interface Job extends JobSummary {
  stages: Stage[];
  timings: { running_seconds: number | null; worker_seconds: number };
  request_id: string | null;
  params: JobConfiguration;
  loras: JobLora[];
  /** Drawn during the trainings so far. */
  previews: Artifact[];
  images: { side: string; width: number; height: number }[];
  result: { artifacts: Artifact[]; slider: SliderPosition[] } | null;
}

export interface JobPage {
  items: JobSummary[];
  next_cursor: string | null;
}

export interface LogLine {
  id: number;
  at: string;
  stage: string;
  level: string;
  message: string;
}

export interface LogPage {
  items: LogLine[];
  next_after: number | null;
}

export interface RecipePage {
  recipes: { name: string; description: string; defaults: Configuration }[];
  merge_recipes: Record<string, unknown>;
  base_models: string[];
  default_base_model: string;
}

/** What the console checks before it sends anything; /console.json. */
export interface Limits {
  max_images_per_side: number;
  max_image_bytes: number;
  max_image_pixels: number;
  min_image_side_px: number;
  max_request_bytes: number;
}

export interface StepWishes {
  content?: number;
  style?: number;
  merge?: number;
  sampling?: number;
}

/** The part `params` of a submission. */
export interface JobParams {
  kind?: JobKind;
  recipe?: string;
  base_model?: string;
  merge_recipe?: string;
  subject_class?: string;
  content_trigger?: string;
  style_trigger?: string;
  style_captions?: string[];
  steps?: StepWishes;
  rank?: number;
  resolution_px?: number;
  seed?: number;
  name?: string;
  slider?: number;
  preview_every?: number;
  loras?: { lora_id: string; strength: number }[];
  prompts?: string[];
  images_per_prompt?: number;
  guidance_scale?: number;
  content_lora_id?: string;
  style_lora_id?: string;
}

/** What was deleted with a job. */
export interface Receipt {
  id: string;
  state: "deleting" | "deleted";
  deleted_at: string | null;
  erased: Record<string, { count: number; bytes: number }>;
}

/** Something that is allowed, but worth a look before the job runs. */
export interface Hint {
  code: string;
  detail: string;
  pointer: string;
}

/** What a submission would become; nothing of it is stored. */
export interface JobCheck {
  ok: boolean;
  config: JobConfiguration;
  stages: { name: string; steps: number | null; predicted_seconds: number | null }[];
  predicted_seconds: number | null;
  predicted_peak_bytes: number | null;
  quota: { policy: string; used: number; limit: number | null; after: number }[];
  images: { side: string; ordinal: number; ok: boolean; problem?: FieldError | null; hints: Hint[] }[];
  hints: Hint[];
}
