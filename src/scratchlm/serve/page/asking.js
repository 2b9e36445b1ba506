// Asking the server. Every failure becomes a Failure whose message can be shown as it is.

const LARGEST = 256 * 1024; // bytes of a request; the server refuses more
const encoder = new TextEncoder();

export class Failure extends Error {
  constructor(message, type = "") {
    super(message);
    this.type = type;
  }
}

/** What is shown of an error; one that is not the server's is a fault of the page, for the console too. */
export function inWords(error) {
  if (error instanceof Failure) return error.message;
  reportError(error);
  return `The page failed: ${error.message}`;
}

export const aborted = (error) => error.name === "AbortError";

/** The token of ?token=, kept for this tab and taken out of the address, where it would be copied with it. */
function keepToken() {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  if (given === null) return sessionStorage.getItem("token");
  sessionStorage.setItem("token", given);
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
  return given;
}

const token = keepToken();

async function send(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const request = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    request.method = "POST";
    request.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
    const bytes = encoder.encode(request.body).length;
    if (bytes > LARGEST) {
      throw new Failure(`The text is too long: the request has ${bytes.toLocaleString("en")} bytes, and
        ${LARGEST.toLocaleString("en")} is the most that the server takes. Shorten the text.`.replace(/\s+/g, " "));
    }
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (aborted(error)) throw error;
    throw new Failure("The server does not answer. Is scratchlm play still running?", "gone");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    throw new Failure("The server wants a token: open the whole address that scratchlm play printed.", "token");
  }
  const answer = await response.json().catch(() => null);
  throw new Failure(answer?.error?.message ?? `The server answered ${response.status}.`, answer?.error?.type);
}

/** The answer to one question. */
export async function ask(path, body, signal) {
  const response = await send(path, body, signal);
  return response.json();
}

/** The events of a stream, one by one; raises a Failure where the stream breaks off without an "end" or an "error". */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let last = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        const event = JSON.parse(part.slice("data: ".length));
        last = event.type;
        signal.throwIfAborted(); // what was read before that is no longer wanted
        yield event;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    throw new Failure("The connection to the server broke off.", "gone");
  }
  if (last !== "end" && last !== "error") throw new Failure("The connection to the server broke off.", "gone");
}
