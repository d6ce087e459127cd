// Text of unknown origin as nodes: always by textContent, with what cannot be seen shown as code points.
"use strict";

// The same characters as in wording.py; /u so that a surrogate matches only when it stands alone.
const UNSEEN =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]/gu;
const SPACES = new Map([[" ", "␣"], ["\n", "⏎\n"], ["\t", "⇥"]]);

/** Make an element; `text` goes in as text. */
function element(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.append(visible(text));
  made.append(...children);
  return made;
}

/** Return a text as a fragment; each character that is not seen becomes a small label. */
function visible(text) {
  const fragment = document.createDocumentFragment();
  let done = 0;
  for (const found of text.matchAll(UNSEEN)) {
    fragment.append(text.slice(done, found.index));
    const label = document.createElement("span");
    label.className = "unseen";
    label.textContent = `U+${found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    fragment.append(label);
    done = found.index + found[0].length;
  }
  fragment.append(text.slice(done));
  return fragment;
}

/** Return a text in one line, with its control characters shown. */
function oneLine(text, longest = 80) {
  const line = text.length > longest ? `${text.slice(0, longest)}…` : text;
  return visible(line.replace(/\s+/g, " ").trim());
}

/** Return a token as a reader can tell it from others: spaces and line ends have signs. */
function token(text) {
  if (text === null) return "end of the output";
  return text.replace(/[ \t\n]/g, (space) => SPACES.get(space).trim()) || "an empty text";
}

/** Return how many UTF-16 units two texts share from their start, without cutting a character in two. */
function sharedLength(a, b) {
  const end = Math.min(a.length, b.length);
  let at = 0;
  while (at < end && a.charCodeAt(at) === b.charCodeAt(at)) at += 1;
  const inPair = (text) => at > 0 && /[\udc00-\udfff]/.test(text[at] ?? "") && /[\ud800-\udbff]/.test(text[at - 1]);
  return inPair(a) || inPair(b) ? at - 1 : at;
}

/**
 * Return where the first differing token starts, and its end in both texts. Tokens often share their first characters
 * (" the", " then"), so the token starts at or before the first differing character. Where the texts of the tokens are not
 * found there, the differing words are taken.
 */
function parting(reference, other, referenceToken, otherToken) {
  const shared = sharedLength(reference, other);
  const longest = Math.max(referenceToken?.length ?? 0, otherToken?.length ?? 0);
  if (longest > 0) {
    for (let at = shared; at >= Math.max(0, shared - longest); at -= 1) {
      const fits = (text, piece) => (piece === null ? text.length === at : text.startsWith(piece, at));
      if (!fits(reference, referenceToken) || !fits(other, otherToken)) continue;
      const ends = [at + (referenceToken?.length ?? 0), at + (otherToken?.length ?? 0)];
      if (Math.max(...ends) > shared || shared === Math.min(reference.length, other.length)) return [at, ...ends];
    }
  }
  const word = (text) => shared + (/^\s*\S{0,40}/u.exec(text.slice(shared, shared + 60))?.[0].length ?? 0);
  return [shared, word(reference), word(other)];
}

/** Return an output as a <pre>: the common start muted, the first difference marked. */
function output(text, from, to, leftOut, label) {
  const before = text.slice(0, from);
  const marked = text.slice(from, to);
  const pre = element("pre", { class: "text", dir: "auto", tabindex: "0", role: "region", "aria-label": label });
  if (leftOut[0]) pre.append(omission(leftOut[0]));
  pre.append(element("span", { class: "shared", text: before }));
  const mark = element("mark", { title: "first difference" });
  if (marked) mark.append(visible(/\S/.test(marked) ? marked : marked.replace(/[ \t\n]/g, (space) => SPACES.get(space))));
  else mark.append("■ the output ends here");
  pre.append(mark, visible(text.slice(to)));
  if (leftOut[1]) pre.append(omission(leftOut[1]));
  return pre;
}

function omission(characters) {
  return element("span", { class: "omission", text: `… ${characters.toLocaleString("en")} characters left out …` });
}

/** Mark all places of a searched text, where the browser can do so without touching the nodes. */
function highlight(root, query) {
  if (!globalThis.Highlight) return;
  CSS.highlights.delete("found");
  if (!query) return;
  const ranges = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node && ranges.length < 500; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length) continue; // a few letters change their length
    for (let at = text.indexOf(query); at >= 0 && ranges.length < 500; at = text.indexOf(query, at + query.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + query.length);
      ranges.push(range);
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}
