// Elements, numbers as text, and work that waits for the next frame.

/** Make an element. Text is always text: nothing of a manifest becomes HTML. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  assign(element, properties);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Write a text into an element if it has another one: each write costs, and may be read aloud. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Write a value into an input, and note it: what is shown is rounded. */
export function setInput(input, text) {
  input.value = input.shown = text;
}

/** Make an element of SVG. */
export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children.flat());
  return element;
}

function assign(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

export const byId = (id) => document.getElementById(id);

/** Return a value rounded to a thousandth of a range, or less. */
export function rounded(value, low, high) {
  const [size, step] = [Math.max(Math.abs(low), Math.abs(high), Math.abs(value)), (high - low) / 1000];
  if (!(size > 0) || !(step > 0)) return value;
  const digits = Math.floor(Math.log10(size)) - Math.floor(Math.log10(step)) + 1;
  return Number(value.toPrecision(Math.min(15, Math.max(1, digits))));
}

/** Return the number in a text, with a point or a comma; NaN if there is none. */
export const parseNumber = (text) => (text.trim() ? Number(text.trim().replace(",", ".")) : NaN);

/** Return a time that is kept as text, without parts of a second. */
export const utc = (text) => (text || "").replace("T", " ").replace(/(\.\d+)?(\+00:00|Z)$/, " UTC");

/** Return a time in seconds since 1970 as text. */
export function moment(seconds) {
  const time = new Date(1000 * seconds);
  return Number.isNaN(time.getTime()) ? String(seconds) : utc(time.toISOString());
}

/** Return a number in at most about six characters. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

export const count = (value) => value.toLocaleString("en-US");

/** Return a size such as "24.3 KB". */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1000) return `${value} B`;
  // 999,600 B would be 1.00e+3 KB.
  const unit = value < 999_500 ? ["KB", 1e3] : value < 999_500_000 ? ["MB", 1e6] : ["GB", 1e9];
  return `${(value / unit[1]).toPrecision(3)} ${unit[0]}`;
}

let under = 0;
let hearers = [];

/** Note that work begins (1) or has ended (-1): the main region is busy meanwhile. */
export function busy(change) {
  under += change;
  byId("main")?.setAttribute("aria-busy", String(under > 0));
  if (!under) hearers = hearers.filter((hearer) => hearer());
}

/** Return a promise of the moment when what begins in the next frames is asked and loaded, or of two seconds later. */
export async function idle() {
  for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
  await new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(end, 2000);
    if (under) hearers.push(end);
    else end();
  });
}

/** Return a function that runs another one once in the next frame, however often it is called. */
export function framed(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    busy(1);
    requestAnimationFrame(() => {
      waits = false;
      busy(-1);
      work();
    });
  };
}

/** Return a function that runs another one when it has not been called for a while. */
export function settled(work, milliseconds) {
  let timer = 0;
  return (...values) => {
    busy(timer ? 0 : 1);
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = 0;
      busy(-1);
      work(...values);
    }, milliseconds);
  };
}

/** Say something to people, also to those who cannot see the page. */
export function tell(text, seconds = 4) {
  const place = byId("status");
  write(place, text);
  place.classList.remove("hidden");
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => place.classList.add("hidden"), 1000 * seconds);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell("copied");
  } catch {
    tell("this browser does not allow copying here");
  }
}
