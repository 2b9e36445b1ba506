// Building the page. What comes from a model or a person goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element. Attributes that begin with "on" are listeners; children are elements or text. */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// what would move, hide or turn round the text beside it; joiners stay, as scripts and emoji need them
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** A text in which every character can be seen and none acts on its neighbours; tabs and line ends stay. */
export function visible(text) {
  return text.replace(UNSEEN, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** The same, cut to so many characters. */
export function short(text, longest = 24) {
  const characters = [...visible(text)];
  return characters.length <= longest ? characters.join("") : `${characters.slice(0, longest - 1).join("")}…`;
}

export const quoted = (label) => `“${short(label)}”`;

/** A probability in words that never claims more than it is: 1 is 100%, 0.9999 is not. */
export function percent(share) {
  if (share === 0 || share === 1) return `${100 * share}%`;
  if (share < 0.0001) return "<0.01%";
  if (share > 0.999) return ">99.9%";
  return `${share < 0.01 ? (100 * share).toPrecision(2) : (100 * share).toFixed(1)}%`;
}

export const number = (value, digits = 3) =>
  Number.isFinite(value) ? String(Number(value.toPrecision(digits))).replace("-", "−") : "–";
export const count = (value) => value.toLocaleString("en");
export const many = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Calls that come close together become one, the last. */
export function later(milliseconds, call) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
}

/** A place for one message: what goes on, or what went wrong, in words. */
export function notice() {
  const element = h("div", { class: "notices" });
  const put = (kind, role, text) => element.replaceChildren(h("p", { class: `notice ${kind}`, role }, visible(text)));
  return {
    element,
    say: (text) => put("busy", "status", text),
    hint: (text) => put("hint", null, text),
    fail: (text) => put("failed", "alert", text),
    clear: () => element.replaceChildren(),
  };
}
