// One thing at a time that the reader asked for: whether it is being done, and why it was refused.

import { said } from "./api/request";

export class Acting {
  busy = $state(false);
  refusal = $state("");

  /** Do it; undefined if it was refused. */
  async run<Answer>(action: () => Promise<Answer>): Promise<Answer | undefined> {
    this.busy = true;
    this.refusal = "";
    try {
      return await action();
    } catch (error) {
      this.refusal = said(error);
      return undefined;
    } finally {
      this.busy = false;
    }
  }
}
