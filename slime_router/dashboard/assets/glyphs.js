// How a token is written in one line, and how many columns that takes.

const MARKS = { "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\u200b": "∅" };
const WIDE = [
  [0x1100, 0x115f], [0x2e80, 0x303e], [0x3041, 0xa4cf], [0xa960, 0xa97f], [0xac00, 0xd7a3],
  [0xf900, 0xfaff], [0xfe30, 0xfe6f], [0xff00, 0xff60], [0xffe0, 0xffe6], [0x1f300, 0x1faff],
  [0x20000, 0x3fffd],
];
const COMBINING = /\p{Mn}|\p{Me}|\u200d|\ufe0f/u;
const PLAIN = /^[\x20-\x7e]*$/;

/** The text of a token, with line ends and the like as marks; `hex` are bytes that are no text. */
export function shown(piece, hex) {
  if (hex !== undefined) return halves(hex);
  if (piece === "") return "∅";
  if (PLAIN.test(piece)) return piece;
  let text = "";
  for (const char of piece) text += MARKS[char] ?? control(char);
  return text;
}

/** The characters that bytes hold, and in hex what is only a part of one: ` K‹c3›`. */
function halves(hex) {
  const bytes = Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
  const strict = new TextDecoder("utf-8", { fatal: true });
  let text = "";
  let broken = "";
  for (let at = 0; at < bytes.length;) {
    const lead = bytes[at];
    const length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    let char = null;
    try {
      char = at + length <= bytes.length ? strict.decode(bytes.subarray(at, at + length)) : null;
    } catch {
      // not a character
    }
    if (char === null) {
      broken += lead.toString(16).padStart(2, "0");
      at += 1;
      continue;
    }
    text += (broken ? `‹${broken}›` : "") + shown(char);
    broken = "";
    at += length;
  }
  return text + (broken ? `‹${broken}›` : "");
}

function control(char) {
  const code = char.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  // what reorders or hides its neighbours is named instead
  if ((code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code === 0x7f) {
    return `‹u+${code.toString(16)}›`;
  }
  return char;
}

/** Columns of a text in a font of fixed width. */
export function width(text) {
  if (PLAIN.test(text)) return text.length;
  let columns = 0;
  for (const char of text) {
    if (COMBINING.test(char)) continue;
    const code = char.codePointAt(0);
    columns += WIDE.some(([low, high]) => code >= low && code <= high) ? 2 : 1;
  }
  return columns;
}
