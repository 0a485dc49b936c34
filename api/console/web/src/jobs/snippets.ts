// Ready-made text to use a result with. That for diffusers and ComfyUI is the documentation's own, with this job's values.

import diffusersText from "../../../../snippets/load_in_diffusers.py?raw";
import workflow from "../../../../snippets/comfyui.json";
import type { Artifact, Job } from "../api/types";
import { jointPrompt } from "./facts";

export interface Snippet {
  title: string;
  text: string;
  /** What to do with the text. */
  note?: string;
}

export function snippets(job: Job, diffusers: Artifact, kohya: Artifact): Snippet[] {
  const prompt = jointPrompt(job) ?? "";
  const side = job.params.preview?.resolution_px ?? 1024;
  return [
    {
      title: "diffusers",
      note: `base is the folder or Hugging Face id of the model that this service calls ${job.params.base_model}.`,
      text: assigned(diffusersText, { base: "...", lora: diffusers.filename, prompt, side_px: side }),
    },
    {
      title: "ComfyUI",
      note: `Put ${kohya.filename} into ComfyUI/models/loras, save this text as workflow.json and drop that file on ComfyUI; there choose your checkpoint.`,
      text: comfyWorkflow(kohya.filename, prompt, side),
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

/** A Python text with other values in its assignments at the left margin. */
function assigned(text: string, values: Record<string, string | number>): string {
  const lines = text.trimEnd().split("\n");
  return lines
    .map((line) => {
      const name = line.split(" = ")[0] ?? "";
      return name in values ? `${name} = ${JSON.stringify(values[name])}` : line;
    })
    .join("\n");
}

/** The workflow with one node to a line. */
function comfyWorkflow(lora: string, prompt: string, side: number): string {
  const filled = structuredClone(workflow);
  filled["2"].inputs.lora_name = lora;
  filled["3"].inputs.text = prompt;
  filled["5"].inputs.width = filled["5"].inputs.height = side;
  const nodes = Object.entries(filled).map(([id, node]) => `  ${JSON.stringify(id)}: ${JSON.stringify(node)}`);
  return `{\n${nodes.join(",\n")}\n}`;
}
