// Server-sent events over fetch: EventSource could not send the key.

import { request } from "./request";

export interface ServerEvent {
  id: string;
  type: string;
  data: string;
}

/** Read a body of server-sent events (WHATWG HTML, section 9.2) until it ends; null is a sign of life without an event. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent | null> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) yield parseEvent(block);
    }
  } finally {
    await reader.cancel().catch(() => undefined); // it may be broken already
  }
}

/** Read one block of lines; null for comments and for what has no data. */
function parseEvent(block: string): ServerEvent | null {
  const event: ServerEvent = { id: "", type: "message", data: "" };
  const data: string[] = [];
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]+):? ?(.*)$/.exec(line) ?? [];
    if (name === "id") event.id = value ?? "";
    if (name === "event") event.type = value ?? "";
    if (name === "data") data.push(value ?? "");
  }
  event.data = data.join("\n");
  return data.length > 0 ? event : null;
}

/** Open a job's events after the one that is known. Null: the job has ended and nothing is to come. */
export async function openEvents(
  id: string,
  lastEventId: string,
  signal: AbortSignal,
): Promise<AsyncGenerator<ServerEvent | null> | null> {
  const headers: Record<string, string> = lastEventId === "" ? {} : { "Last-Event-ID": lastEventId };
  const answer = await request(`jobs/${id}/events`, { headers, signal });
  return answer.status === 204 || answer.body === null ? null : readEvents(answer.body);
}
