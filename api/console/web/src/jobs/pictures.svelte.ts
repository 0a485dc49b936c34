// Pictures that were chosen, and what can be said against them before they are sent.

import type { Limits } from "../api/types";
import { bytes } from "../words";

export const ACCEPTED = ["image/png", "image/jpeg", "image/webp"];

let count = 0;

export class Picture {
  readonly id = `picture-${++count}`;
  readonly url: string;
  caption = $state("");
  problem = $state("");
  size = $state("");

  constructor(
    readonly file: File,
    limits: Limits,
  ) {
    this.url = URL.createObjectURL(file);
    void this.#examine(limits);
  }

  release(): void {
    URL.revokeObjectURL(this.url);
  }

  async #examine(limits: Limits): Promise<void> {
    this.problem = fileProblem(this.file, limits);
    if (this.problem !== "") return;
    const image = new Image();
    image.src = this.url;
    try {
      await image.decode();
    } catch {
      this.problem = "This picture cannot be read. Export it again as PNG, JPEG or WebP.";
      return;
    }
    this.size = `${image.naturalWidth} × ${image.naturalHeight}`;
    this.problem = sizeProblem(image.naturalWidth, image.naturalHeight, limits);
  }
}

function fileProblem(file: File, limits: Limits): string {
  if (!ACCEPTED.includes(file.type)) return "Only PNG, JPEG and WebP pictures can be used. Convert it to one of these.";
  if (file.size === 0) return "This file is empty.";
  if (file.size <= limits.max_image_bytes) return "";
  return `${bytes(file.size)} is too large: at most ${bytes(limits.max_image_bytes)}. Scale it down.`;
}

function sizeProblem(width: number, height: number, limits: Limits): string {
  const least = limits.min_image_side_px;
  if (Math.min(width, height) < least) return `Too small: each side needs at least ${least} pixels.`;
  if (width * height <= limits.max_image_pixels) return "";
  return `Too large: at most ${limits.max_image_pixels / 1e6} megapixels. Scale it down.`;
}

/** What is wrong with the number of pictures of one side; nothing if it is right. */
export function countProblem(pictures: readonly Picture[], limits: Limits): string {
  const most = limits.max_images_per_side;
  if (pictures.length === 0) return "Choose at least one picture.";
  return pictures.length <= most ? "" : `${pictures.length} pictures are too many: at most ${most}. Remove some.`;
}
