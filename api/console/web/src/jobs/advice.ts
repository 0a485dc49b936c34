// What may be better about pictures that can be used: said beside them, and no hindrance.

import type { Picture } from "./pictures.svelte";
import { alike } from "./likeness";

/** From so many on, a LoRA learns what the pictures share and not one of them by heart. */
const ENOUGH = 3;

const same = (one: Picture, other: Picture): boolean =>
  one.likeness !== null && other.likeness !== null && alike(one.likeness, other.likeness);

/** Advice about one picture among those of its side and of the other side. */
export function pictureAdvice(picture: Picture, own: readonly Picture[], others: readonly Picture[], resolution: number | null): string {
  const before = own.slice(0, own.indexOf(picture)).find((other) => same(picture, other));
  if (before) return `Looks the same as ${before.file.name}. Twice the same teaches nothing more: remove one.`;
  const across = others.find((other) => same(picture, other));
  if (across) return `Looks the same as ${across.file.name} of the other side. A picture belongs to one side: remove it from the other.`;
  const least = Math.min(picture.width, picture.height);
  if (resolution === null || least === 0 || least >= resolution) return "";
  return `Smaller than the ${resolution} pixels of the training, so it will be enlarged and look soft. Use a larger one if you have it.`;
}

/** Advice about the number of pictures of a side. */
export function countAdvice(count: number): string {
  if (count === 0 || count >= ENOUGH) return "";
  return `${count === 1 ? "One picture works" : "Two pictures work"}; three to five different ones work better.`;
}
