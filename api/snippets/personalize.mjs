// From pictures to the merged LoRA with nothing but fetch. Node 20 or newer:
//   DUOLORA_URL=http://127.0.0.1:8000 DUOLORA_API_KEY=duo_... node personalize.mjs CONTENT_FOLDER STYLE_FOLDER
// In a browser the pictures come from <input type="file">; keep the key on your server and pass the requests on there.

import { openAsBlob } from "node:fs";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

const { DUOLORA_URL: service, DUOLORA_API_KEY: key } = process.env;
const [contentFolder, styleFolder] = process.argv.slice(2);
const params = { subject_class: "cat" };

async function ask(path, { headers, ...options } = {}) {
  const answer = await fetch(service + path, { ...options, headers: { Authorization: `Bearer ${key}`, ...headers } });
  if (answer.ok || answer.status === 304) return answer;
  const problem = await answer.json();
  throw new Error(`${problem.code}: ${problem.detail} ${JSON.stringify(problem.errors ?? [])}`);
}

async function submit() {
  const form = new FormData();
  for (const [field, folder] of [["content_images", contentFolder], ["style_images", styleFolder]]) {
    for (const name of (await readdir(folder)).sort()) form.append(field, await openAsBlob(join(folder, name)), name);
  }
  form.append("params", new Blob([JSON.stringify(params)], { type: "application/json" }));
  // With the same key the request may be sent again: it makes one job however often it arrives.
  const answer = await ask("/jobs", { method: "POST", body: form, headers: { "Idempotency-Key": crypto.randomUUID() } });
  return answer.json();
}

async function ended(path) {
  for (let tag = ""; ; ) {
    // With the tag of what is known it is answered when the job gets further, or after 30 seconds with 304.
    const answer = await ask(path, { headers: tag ? { Prefer: "wait=30", "If-None-Match": tag } : {} });
    if (answer.status === 304) continue;
    const job = await answer.json();
    if (job.state !== "queued" && job.state !== "running") return job;
    console.log(job.state, `${Math.round(100 * job.progress.fraction)}%`);
    tag = answer.headers.get("ETag");
  }
}

const { id } = await submit();
const job = await ended(`/jobs/${id}`);
if (job.state !== "succeeded") throw new Error(`${job.state}: ${job.error?.detail ?? ""}`);
const lora = job.result.artifacts.find(({ name }) => name === "merged_diffusers");
const file = await fetch(lora.url); // a signed link: no key
if (!file.ok) throw new Error(`the store answered ${file.status}`);
await writeFile(lora.filename, Buffer.from(await file.arrayBuffer()));
console.log("wrote", lora.filename);
