// Pictures that were chosen, and what can be said against them before they are sent.

import type { Limits } from "../api/types";
import { bytes } from "../words";
import { kindOf } from "./formats";
import { type Likeness, likenessOf } from "./likeness";

export const ACCEPTED = ["image/png", "image/jpeg", "image/webp"];

let count = 0;

export class Picture {
  readonly id = `picture-${++count}`;
  readonly url: string;
  caption = $state("");
  /** Why it cannot be used; nothing if it can. */
  problem = $state("");
  width = $state(0);
  height = $state(0);
  likeness = $state.raw<Likeness | null>(null);
  /** Settles when the picture has been looked at. */
  readonly examined: Promise<void>;

  constructor(
    readonly file: File,
    limits: Limits,
  ) {
    this.url = URL.createObjectURL(file);
    this.examined = this.#examine(limits);
  }

  release(): void {
    URL.revokeObjectURL(this.url);
  }

  async #examine(limits: Limits): Promise<void> {
    this.problem = await fileProblem(this.file, limits);
    if (this.problem !== "") return;
    const image = new Image();
    image.src = this.url;
    try {
      await image.decode();
    } catch {
      this.problem = "This picture is damaged and cannot be opened. Export it again as PNG, JPEG or WebP.";
      return;
    }
    [this.width, this.height] = [image.naturalWidth, image.naturalHeight];
    this.problem = sizeProblem(this.width, this.height, limits);
    if (this.problem === "") this.likeness = likenessOf(image);
  }
}

async function fileProblem(file: File, limits: Limits): Promise<string> {
  if (file.size === 0) return "This file is empty. Save the picture again.";
  const { accepted, remedy } = await kindOf(file);
  if (!accepted) return remedy;
  if (file.size <= limits.max_image_bytes) return "";
  return `${bytes(file.size)} is too large: at most ${bytes(limits.max_image_bytes)}. Scale it down or save it as JPEG.`;
}

function sizeProblem(width: number, height: number, limits: Limits): string {
  const least = limits.min_image_side_px;
  if (Math.min(width, height) < least) return `Too small: each side needs at least ${least} pixels. Use a larger picture.`;
  if (width * height <= limits.max_image_pixels) return "";
  return `Too large: at most ${limits.max_image_pixels / 1e6} megapixels. Scale it down.`;
}

/** What is wrong with the number of pictures of one side; nothing if it is right. */
export function countProblem(pictures: readonly Picture[], limits: Limits): string {
  const most = limits.max_images_per_side;
  if (pictures.length === 0) return "Choose at least one picture.";
  return pictures.length <= most ? "" : `${pictures.length} pictures are too many: at most ${most}. Remove some.`;
}
