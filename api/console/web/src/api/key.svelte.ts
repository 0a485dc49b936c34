// The API key of this tab. It is kept in sessionStorage, so it ends with the tab; a new tab asks the open ones for it.

const SLOT = "duolora.key";
const CHANNEL = "duolora.key";
const PATIENCE_MS = 200;

type Message = { kind: "wanted" } | { kind: "key"; text: string } | { kind: "forgotten" };

class Key {
  text = $state<string | null>(sessionStorage.getItem(SLOT));
  /** Why the key was given up, if the service refused it. */
  complaint = $state("");
  #tabs = new BroadcastChannel(CHANNEL);

  constructor() {
    this.#tabs.onmessage = ({ data }: MessageEvent<Message>) => this.#hear(data);
  }

  /** Take the key out of the address bar, if it is there: #key=... */
  takeFromAddress(): void {
    const given = new URLSearchParams(location.hash.slice(1)).get("key");
    if (given === null) return;
    history.replaceState(null, "", location.pathname + location.search);
    this.set(given);
  }

  /** Ask the other tabs, if this one has no key. */
  async askAround(): Promise<void> {
    if (this.text !== null) return;
    this.#tell({ kind: "wanted" });
    await new Promise((resolve) => setTimeout(resolve, PATIENCE_MS));
  }

  set(text: string): void {
    this.text = text.trim();
    this.complaint = "";
    sessionStorage.setItem(SLOT, this.text);
  }

  /** Forget the key, in every tab that has it. */
  forget(): void {
    this.#drop("");
    this.#tell({ kind: "forgotten" });
  }

  /** Forget a key that the service does not accept, in this tab. */
  refuse(complaint: string): void {
    this.#drop(complaint);
  }

  #drop(complaint: string): void {
    this.text = null;
    this.complaint = complaint;
    sessionStorage.removeItem(SLOT);
  }

  #tell(message: Message): void {
    this.#tabs.postMessage(message);
  }

  #hear(message: Message): void {
    if (message.kind === "wanted" && this.text !== null) this.#tell({ kind: "key", text: this.text });
    if (message.kind === "key" && this.text === null && this.complaint === "") this.set(message.text);
    if (message.kind === "forgotten") this.#drop("");
  }
}

export const key = new Key();
