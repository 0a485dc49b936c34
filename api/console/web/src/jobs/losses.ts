// The losses of a job's stages, from its events.

export interface Point {
  step: number;
  loss: number;
}

export interface Curve {
  stage: string;
  points: Point[];
  /** The same, as an exponential moving average. */
  smooth: Point[];
}

const KEEP = 0.8;

/** Smooth as training curves usually are: each value keeps most of the one before. */
export function smoothed(points: readonly Point[]): Point[] {
  let mean = points[0]?.loss ?? 0;
  return points.map(({ step, loss }) => {
    mean = KEEP * mean + (1 - KEEP) * loss;
    return { step, loss: mean };
  });
}

/** Where both LoRAs share each pass, a worker tells one loss of both: that is one curve. */
function joined(curves: Curve[]): Curve[] {
  const content = curves.find(({ stage }) => stage === "content_lora");
  const style = curves.find(({ stage }) => stage === "style_lora");
  if (content === undefined || style === undefined || !sameBeginning(content.points, style.points)) return curves;
  const longer = content.points.length > style.points.length ? content : style;
  return [{ ...longer, stage: "loras" }, ...curves.filter((curve) => curve !== content && curve !== style)];
}

/** Whether one of the two goes on where the other ends; the last point may still be on its way for one of them. */
function sameBeginning(one: Point[], other: Point[]): boolean {
  const shared = Math.min(one.length, other.length);
  return one.slice(0, shared).every(({ step, loss }, at) => other[at]?.step === step && other[at]?.loss === loss);
}

/** Collects losses. A step that is done again after a crash replaces what it was. */
export class Losses {
  #stages = new Map<string, Map<number, number>>();

  add(stage: string, step: number, loss: number): void {
    const steps = this.#stages.get(stage) ?? new Map<number, number>();
    steps.set(step, loss);
    this.#stages.set(stage, steps);
  }

  curves(): Curve[] {
    const stages = [...this.#stages].sort(([a], [b]) => a.localeCompare(b));
    const curves = stages.map(([stage, steps]) => {
      const points = [...steps].map(([step, loss]) => ({ step, loss })).sort((a, b) => a.step - b.step);
      return { stage, points, smooth: smoothed(points) };
    });
    return joined(curves);
  }
}

/** At most so many rows of a curve, evenly spread, the last one among them. */
export function sampled({ points, smooth }: Curve, most: number): { step: number; loss: number; average: number }[] {
  const rows = points.map(({ step, loss }, at) => ({ step, loss, average: smooth[at]?.loss ?? loss }));
  const every = Math.ceil(rows.length / most);
  return rows.filter((_, at) => (rows.length - 1 - at) % every === 0);
}
