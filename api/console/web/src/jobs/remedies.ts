// What to do about a job that failed, by the code of its problem.

const REMEDIES: Record<string, string> = {
  training_diverged: "Start a new job with fewer steps, or with another recipe.",
  gpu_out_of_memory: "Start a new job with a lower rank or resolution, or retry when the GPU does less.",
  invalid_image: "Start a new job without that picture, or export it again as PNG or JPEG.",
  invalid_config: "Start a new job with other settings; the text above says which.",
  invalid_lora: "Use another LoRA file, or one that was made for this base model.",
  layer_group_empty: "Start a new job with another base model or recipe.",
  invalid_base: "The base model is the operator's to mend. Choose another one, or retry once it is.",
  base_unavailable: "Retry once the base model can be reached, or choose another one.",
  deadline_exceeded: "Retry: it goes on from where it was last saved.",
  checkpoint_unusable: "Retry: it starts again from the beginning.",
  insufficient_storage: "Retry once the operator has made room on the worker's disk.",
};

/** The remedy in a sentence. */
export const remedy = (code: string, retryable: boolean): string =>
  REMEDIES[code] ??
  (retryable ? "Retry: it goes on from where it was last saved." : "Start a new job; if it fails again, ask the operator with the code below.");
