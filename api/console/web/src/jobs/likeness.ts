// Whether two pictures show the same: a difference hash, 64 bits that say where brightness falls from left to right.

const ACROSS = 8;
/** Bits that may differ between two pictures that look the same. */
const ALIKE = 3;
/** Bits of a picture with something on it: an even surface has none, and is like any other. */
const TELLING = 6;

export type Likeness = readonly boolean[];

/** Make the hash of a decoded picture; null where the browser gives no pixels. */
export function likenessOf(image: HTMLImageElement): Likeness | null {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [ACROSS + 1, ACROSS];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (context === null) return null;
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const light = (row: number, column: number): number => {
    const at = (row * canvas.width + column) * 4;
    return 0.299 * (data[at] ?? 0) + 0.587 * (data[at + 1] ?? 0) + 0.114 * (data[at + 2] ?? 0);
  };
  const cells = Array.from({ length: ACROSS * ACROSS }, (_, cell) => [Math.floor(cell / ACROSS), cell % ACROSS] as const);
  return cells.map(([row, column]) => light(row, column) - light(row, column + 1) > 1);
}

/** Whether two pictures look the same. */
export function alike(one: Likeness, other: Likeness): boolean {
  if (one.filter(Boolean).length < TELLING) return false;
  return one.filter((bit, at) => bit !== other[at]).length <= ALIKE;
}
