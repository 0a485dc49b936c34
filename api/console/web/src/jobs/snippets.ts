// Ready-made text to use a result with.

import type { Artifact, Job } from "../api/types";
import { jointPrompt } from "./facts";

export interface Snippet {
  title: string;
  text: string;
}

export function snippets(job: Job, diffusers: Artifact, kohya: Artifact): Snippet[] {
  const prompt = jointPrompt(job) ?? "";
  const side = job.params.preview?.resolution_px ?? 1024;
  return [
    {
      title: "diffusers",
      text: [
        "import torch; from diffusers import AutoPipelineForText2Image",
        `base = "..."  # folder or Hugging Face id of the model that this service calls ${job.params.base_model}`,
        "pipe = AutoPipelineForText2Image.from_pretrained(base, torch_dtype=torch.float32)",
        `pipe.load_lora_weights("${diffusers.filename}")`,
        `pipe(${JSON.stringify(prompt)}, height=${side}, width=${side}).images[0].save("picture.png")`,
      ].join("\n"),
    },
    {
      title: "ComfyUI",
      text: [
        `1. Put ${kohya.filename} into ComfyUI/models/loras`,
        "2. Load Checkpoint -> Load LoRA (both strengths 1.0) -> CLIP Text Encode -> KSampler",
        `3. Prompt: ${prompt}`,
      ].join("\n"),
    },
    {
      title: "curl",
      text: [
        `curl -fsS -o ${diffusers.filename} '${diffusers.url}'`,
        `# a fresh link after ${new Date(diffusers.expires_at).toLocaleTimeString()}:`,
        `curl -fsS -H "Authorization: Bearer $KEY" ${new URL(`jobs/${job.id}`, document.baseURI).href}`,
      ].join("\n"),
    },
  ];
}
