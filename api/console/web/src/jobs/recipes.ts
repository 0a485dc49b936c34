// Recipes in plain words. One that is not known here is said in the service's own words.

import type { Configuration, RecipePage } from "../api/types";

export interface RecipeChoice {
  name: string;
  title: string;
  words: string;
  /** What it does by itself, in numbers; nothing for the automatic one. */
  numbers: string;
}

const WORDS: Record<string, { title: string; words: string }> = {
  tiny: { title: "Small model, quick", words: "For the model that comes with DuoLoRA. Done in about a minute without a GPU; coarse pictures, good for a first try." },
  "tiny-long": { title: "Small model, thorough", words: "The same model with more steps: better learnt, some minutes without a GPU." },
  sdxl: { title: "SDXL", words: "For SDXL models. Equal effort for subject and style; wants a GPU." },
  "sdxl-paper": { title: "SDXL, as published", words: "The numbers of the DuoLoRA paper, to compare with it. Slower than SDXL." },
  sd15: { title: "Stable Diffusion 1.5", words: "For SD 1.5 models, which draw smaller pictures; wants a GPU." },
};

const AUTOMATIC: RecipeChoice = {
  name: "",
  title: "Automatic",
  words: "Recommended. Takes what suits the base model.",
  numbers: "",
};

const numbers = ({ content, style, merge }: Configuration): string =>
  [
    content.steps === style.steps ? `${content.steps} steps each` : `${content.steps} and ${style.steps} steps`,
    `rank ${content.rank}`,
    `${content.resolution_px} px`,
    merge.steps === 0 ? "" : `${merge.steps} merge steps`,
  ]
    .filter(Boolean)
    .join(" · ");

/** All that can be chosen, the automatic one first. */
export function recipeChoices({ recipes }: RecipePage): RecipeChoice[] {
  const named = recipes.map(({ name, description, defaults }) => ({
    name,
    ...(WORDS[name] ?? { title: name, words: description }),
    numbers: numbers(defaults),
  }));
  return [AUTOMATIC, ...named];
}

/** The base models to choose from; `unsaid`: what an empty choice means. */
export const baseChoices = ({ base_models, default_base_model }: RecipePage, unsaid?: string): { value: string; words: string }[] => [
  { value: "", words: unsaid ?? `${default_base_model} (default)` },
  ...base_models.filter((name) => unsaid !== undefined || name !== default_base_model).map((name) => ({ value: name, words: name })),
];

const MERGES: Record<string, string> = {
  duolora: "Measured strengths per layer; the best in our comparison",
  paper: "Learned masks, as in the paper; takes longer",
  release: "As the paper's published code behaves",
  instant: "Least squares alone, at once",
};

/** Ways to merge, by name, with what each does. */
export const mergeWords = (name: string): string => (MERGES[name] === undefined ? name : `${name}: ${MERGES[name]}`);
