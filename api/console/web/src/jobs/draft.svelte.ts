// A job that learns from pictures, as it is put together.

import { checkJob, submitJob } from "../api/jobs";
import type { FieldError, Job, JobCheck, JobParams, Limits, RecipePage, StepWishes } from "../api/types";
import { isWhole, JobForm, WHOLE } from "./form.svelte";
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

export class Draft extends JobForm<Pointer> {
  goal = $state<Goal>("both");
  pictures = $state<Record<Side, Picture[]>>({ content: [], style: [] });

  constructor(readonly limits: Limits) {
    super();
  }

  add(side: Side, files: Iterable<File>): void {
    for (const file of files) this.pictures[side].push(new Picture(file, this.limits));
    this.forgetErrors(`/${side}_images`);
  }

  remove(side: Side, picture: Picture): void {
    picture.release();
    this.pictures[side] = this.pictures[side].filter(({ id }) => id !== picture.id);
    this.forgetErrors(`/${side}_images`);
    this.forgetErrors(`/params/${side}_captions`);
  }

  /** Put a picture where another one is; the others move up. */
  move(side: Side, picture: Picture, place: number): void {
    const rest = this.pictures[side].filter(({ id }) => id !== picture.id);
    this.pictures[side] = rest.toSpliced(place, 0, picture);
    this.forgetErrors(`/${side}_images`);
    this.forgetErrors(`/params/${side}_captions`);
  }

  /** The pixels that the training will have, if that is known: of a recipe that is left to the service it is not. */
  resolution({ recipes }: RecipePage): number | null {
    const wish = Number(this.value("/params/resolution_px"));
    if (Number.isInteger(wish) && wish > 0) return wish;
    const recipe = recipes.find(({ name }) => name === this.value("/params/recipe"));
    return recipe?.defaults.content.resolution_px ?? null;
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

  /** There is if there are pictures on each side, of which none is known to be of no use. */
  get ready(): boolean {
    const enough = this.sides.every((side) => this.pictures[side].length > 0);
    return enough && this.#chosen().every(({ width, problem }) => width > 0 && problem === "");
  }

  get missing(): string {
    return `${this.goal === "both" ? "Add pictures to both sides" : "Add pictures"}: then it says here how long the job takes.`;
  }

  get signature(): string {
    return JSON.stringify([this.#params(), this.sides.map((side) => this.pictures[side].map(({ id }) => id))]);
  }

  override get bytes(): number {
    return this.#chosen().reduce((sum, { file }) => sum + file.size, 0);
  }

  /** What the service says of one picture that could be better. */
  hint(side: Side, index: number): string {
    const seen = this.check?.images.find((image) => image.side === side && image.ordinal === index);
    return seen?.hints[0]?.detail ?? "";
  }

  /** Pictures were chosen: they cannot be had back but by choosing them again. */
  get begun(): boolean {
    return this.pictures.content.length + this.pictures.style.length > 0;
  }

  /** Let the pictures go. */
  release(): void {
    for (const picture of [...this.pictures.content, ...this.pictures.style]) picture.release();
  }

  protected override async settled(): Promise<void> {
    await Promise.all(this.#chosen().map(({ examined }) => examined));
  }

  protected submit(idempotencyKey: string): Promise<Job> {
    return submitJob(this.#params(), this.#files("content"), this.#files("style"), idempotencyKey);
  }

  protected ask(signal: AbortSignal): Promise<JobCheck> {
    return checkJob(this.#params(), this.#files("content"), this.#files("style"), signal);
  }

  protected faults(): FieldError[] {
    const found: FieldError[] = [];
    const say = (pointer: string, detail: string) => detail !== "" && found.push({ pointer, detail, code: "" });
    for (const side of this.sides) {
      say(`/${side}_images`, countProblem(this.pictures[side], this.limits));
      this.pictures[side].forEach(({ problem }, index) => say(`/${side}_images/${index}`, problem));
    }
    if (this.sides.includes("style")) this.#captions().forEach((caption, index) => say(`/params/style_captions/${index}`, caption === "" ? GAP : ""));
    for (const [pointer, value] of Object.entries(this.values)) {
      const number = value.trim();
      say(pointer, NUMBERS.test(pointer) && number !== "" && !isWhole(number) ? WHOLE : "");
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
      const value = this.value(`/params/${name}`);
      if (value !== "" && (whole || name !== "merge_recipe")) params[name] = value;
    }
    for (const name of AMOUNTS) {
      const value = this.value(`/params/${name}`);
      if (value !== "" && (whole || name !== "slider")) params[name] = Number(value);
    }
    const steps: StepWishes = {};
    for (const name of whole ? [...this.sides, "merge" as const] : this.sides) {
      const value = this.value(`/params/steps/${name}`);
      if (value !== "") steps[name] = Number(value);
    }
    if (Object.keys(steps).length > 0) params.steps = steps;
    const captions = this.sides.includes("style") ? this.#captions() : [];
    if (captions.length > 0) params.style_captions = captions;
    return params;
  }
}
