// Pictures of a job that draws, by what they show. They come prompt after prompt, so many of each.

import type { Artifact, Job } from "../api/types";

export function byPrompt({ params: { prompts, sampling } }: Job, pictures: readonly Artifact[]): { prompt: string; drawn: Artifact[] }[] {
  if (!Array.isArray(prompts) || sampling === undefined) return [{ prompt: "", drawn: [...pictures] }];
  const rows = prompts.map((prompt, place) => ({ prompt, drawn: pictures.slice(place * sampling.images, (place + 1) * sampling.images) }));
  return rows.filter(({ drawn }) => drawn.length > 0); // a job that was stopped has fewer
}
