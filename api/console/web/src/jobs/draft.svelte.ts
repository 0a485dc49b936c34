// The job that is being put together: its fields, what is wrong with them, and how it is sent.

import { checkJob, submitJob } from "../api/jobs";
import { newIdempotencyKey, Problem, said } from "../api/request";
import type { FieldError, Job, JobCheck, JobParams, Limits, RecipePage, StepWishes } from "../api/types";
import { countProblem, Picture } from "./pictures.svelte";

/** Fields that hold one word or number, by the JSON pointer that the service names them by. */
export type Pointer =
  | "/params/name"
  | "/params/subject_class"
  | "/params/recipe"
  | "/params/base_model"
  | "/params/merge_recipe"
  | "/params/seed"
  | "/params/content_trigger"
  | "/params/style_trigger"
  | "/params/steps/content"
  | "/params/steps/style"
  | "/params/steps/merge"
  | "/params/rank"
  | "/params/resolution_px"
  | "/params/slider"
  | "/params/preview_every";

const NUMBERS = /^\/params\/(seed|rank|resolution_px|slider|preview_every|steps\/.*)$/;
const WORDS = ["name", "subject_class", "recipe", "base_model", "merge_recipe", "content_trigger", "style_trigger"] as const;
const AMOUNTS = ["seed", "rank", "resolution_px", "slider", "preview_every"] as const;
/** Pictures of the merge between all subject and all style, if the form does not say how many. */
export const SLIDER_POSITIONS = 5;
const GAP = "Pictures and captions go by order: give this picture one too, or clear those after it.";

export type Side = "content" | "style";

/** What is to be made: both sides and their merge, or one side alone. */
export type Goal = "both" | Side;

export class Draft {
  goal = $state<Goal>("both");
  pictures = $state<Record<Side, Picture[]>>({ content: [], style: [] });
  values = $state<Partial<Record<Pointer, string>>>({});
  errors = $state<FieldError[]>([]);
  /** What the service says of the draft as it is; null until it has looked. */
  check = $state.raw<JobCheck | null>(null);
  /** Somebody tried to send it as it was. */
  tried = $state(false);
  /** What is wrong with the request as a whole. */
  complaint = $state("");
  sending = $state(false);

  #idempotencyKey = "";
  #sent = "";

  constructor(readonly limits: Limits) {}

  add(side: Side, files: Iterable<File>): void {
    for (const file of files) this.pictures[side].push(new Picture(file, this.limits));
    this.#forgetErrors(`/${side}_images`);
  }

  remove(side: Side, picture: Picture): void {
    picture.release();
    this.pictures[side] = this.pictures[side].filter(({ id }) => id !== picture.id);
    this.#forgetErrors(`/${side}_images`);
    this.#forgetErrors(`/params/${side}_captions`);
  }

  /** Put a picture where another one is; the others move up. */
  move(side: Side, picture: Picture, place: number): void {
    const rest = this.pictures[side].filter(({ id }) => id !== picture.id);
    this.pictures[side] = rest.toSpliced(place, 0, picture);
    this.#forgetErrors(`/${side}_images`);
    this.#forgetErrors(`/params/${side}_captions`);
  }

  set(pointer: Pointer, value: string): void {
    this.values[pointer] = value;
    this.#forgetErrors(pointer);
  }

  /** What a field of the form shows. */
  field(pointer: Pointer): { pointer: Pointer; value: string; set: (value: string) => void; error: string } {
    return {
      pointer,
      value: this.values[pointer] ?? "",
      set: (value) => this.set(pointer, value),
      error: this.error(pointer),
    };
  }

  /** The pixels that the training will have, if that is known: of a recipe that is left to the service it is not. */
  resolution({ recipes }: RecipePage): number | null {
    const wish = Number(this.#value("/params/resolution_px"));
    if (Number.isInteger(wish) && wish > 0) return wish;
    const recipe = recipes.find(({ name }) => name === this.#value("/params/recipe"));
    return recipe?.defaults.content.resolution_px ?? null;
  }

  error(pointer: string): string {
    return this.errors.find((error) => error.pointer === pointer)?.detail ?? "";
  }

  /** Send the job; null if something is wrong, which `errors` and `complaint` then say. */
  async send(): Promise<Job | null> {
    this.complaint = "";
    this.tried = true;
    this.sending = true;
    await Promise.all(this.#chosen().map(({ examined }) => examined));
    this.errors = this.#check();
    if (this.errors.length > 0) {
      this.sending = false;
      return null;
    }
    try {
      return await submitJob(this.#params(), this.#files("content"), this.#files("style"), this.#key());
    } catch (error) {
      if (error instanceof Problem) this.errors = error.document.errors ?? [];
      this.complaint = said(error);
      return null;
    } finally {
      this.sending = false;
    }
  }

  /** Choose what is to be made. Pictures of the other side stay, and are not sent. */
  aim(goal: Goal): void {
    this.goal = goal;
    this.errors = [];
    this.check = null;
  }

  /** The sides that are to be learned. */
  get sides(): readonly Side[] {
    return this.goal === "both" ? ["content", "style"] : [this.goal];
  }

  /** Whether there is anything to look at: pictures on each side, of which none is known to be of no use. */
  get ready(): boolean {
    const enough = this.sides.every((side) => this.pictures[side].length > 0);
    return enough && this.#chosen().every(({ width, problem }) => width > 0 && problem === "");
  }

  /** Another one as soon as anything that would be sent is another. */
  get signature(): string {
    return JSON.stringify([this.#params(), this.sides.map((side) => this.pictures[side].map(({ id }) => id))]);
  }

  get bytes(): number {
    return this.#chosen().reduce((sum, { file }) => sum + file.size, 0);
  }

  /** Have the service look at the draft as it is: what it finds stands at its field. */
  async look(signal: AbortSignal): Promise<void> {
    const found = this.#check();
    if (found.length > 0) return;
    try {
      const check = await checkJob(this.#params(), this.#files("content"), this.#files("style"), signal);
      this.check = check;
      this.errors = check.images.flatMap(({ problem }) => problem ?? []);
    } catch (error) {
      if (signal.aborted) return;
      this.check = null;
      if (error instanceof Problem) this.errors = error.document.errors ?? [];
    }
  }

  /** What the service says of one picture that could be better. */
  hint(side: Side, index: number): string {
    const seen = this.check?.images.find((image) => image.side === side && image.ordinal === index);
    return seen?.hints[0]?.detail ?? "";
  }

  /** Let the pictures go. */
  release(): void {
    for (const picture of [...this.pictures.content, ...this.pictures.style]) picture.release();
  }

  #check(): FieldError[] {
    const found: FieldError[] = [];
    const say = (pointer: string, detail: string) => detail !== "" && found.push({ pointer, detail, code: "" });
    for (const side of this.sides) {
      say(`/${side}_images`, countProblem(this.pictures[side], this.limits));
      this.pictures[side].forEach(({ problem }, index) => say(`/${side}_images/${index}`, problem));
    }
    if (this.sides.includes("style")) this.#captions().forEach((caption, index) => say(`/params/style_captions/${index}`, caption === "" ? GAP : ""));
    for (const [pointer, value] of Object.entries(this.values)) {
      const number = value.trim();
      const wanted = NUMBERS.test(pointer) && number !== "" && !(/^\d+$/.test(number) && Number.isSafeInteger(Number(number)));
      say(pointer, wanted ? "Write a whole number, or leave it empty." : "");
    }
    return found;
  }

  #captions(): string[] {
    const captions = this.pictures.style.map(({ caption }) => caption.trim());
    return captions.slice(0, captions.findLastIndex((caption) => caption !== "") + 1);
  }

  #files(side: Side): File[] {
    return this.sides.includes(side) ? this.pictures[side].map(({ file }) => file) : [];
  }

  #chosen(): Picture[] {
    return this.sides.flatMap((side) => this.pictures[side]);
  }

  #params(): JobParams {
    const whole = this.goal === "both";
    const params: JobParams = whole ? { slider: SLIDER_POSITIONS } : { kind: "train" };
    for (const name of WORDS) {
      const value = this.#value(`/params/${name}`);
      if (value !== "" && (whole || name !== "merge_recipe")) params[name] = value;
    }
    for (const name of AMOUNTS) {
      const value = this.#value(`/params/${name}`);
      if (value !== "" && (whole || name !== "slider")) params[name] = Number(value);
    }
    const steps: StepWishes = {};
    for (const name of whole ? [...this.sides, "merge" as const] : this.sides) {
      const value = this.#value(`/params/steps/${name}`);
      if (value !== "") steps[name] = Number(value);
    }
    if (Object.keys(steps).length > 0) params.steps = steps;
    const captions = this.sides.includes("style") ? this.#captions() : [];
    if (captions.length > 0) params.style_captions = captions;
    return params;
  }

  #value(pointer: Pointer): string {
    return (this.values[pointer] ?? "").trim();
  }

  /** The same key for as long as the same is sent: after a lost answer, sending again does nothing twice. */
  #key(): string {
    const sent = this.signature;
    if (sent !== this.#sent) this.#idempotencyKey = newIdempotencyKey();
    this.#sent = sent;
    return this.#idempotencyKey;
  }

  #forgetErrors(prefix: string): void {
    this.check = null; // it was of another draft
    this.errors = this.errors.filter(({ pointer }) => pointer !== prefix && !pointer.startsWith(`${prefix}/`));
  }
}
