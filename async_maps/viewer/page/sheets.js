// Panes that show one picture each, with one zoom and one position: what moves in one moves in all.

import { h } from "./dom.js";

const MOST_ZOOM = 64;

export class Sheets {
  constructor({ onPoint, onZoom }) {
    this.onPoint = onPoint;
    this.onZoom = onZoom;
    this.element = h("div", { class: "panes" });
    this.panes = [];
    this.width = this.height = 1;
    this.scale = 0; // 0 until it fits
    this.x = this.y = 0;
    this.element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.element.addEventListener("pointerdown", (event) => this.drag(event));
    this.element.addEventListener("pointermove", (event) => this.point(event));
    this.element.addEventListener("pointerleave", () => this.onPoint(null));
    this.element.addEventListener("dblclick", () => this.fit());
    new ResizeObserver(() => (this.isFitted ? this.fit() : this.move())).observe(this.element);
  }

  /** Show panes: each has a title and the elements of its sheet, which fill it. */
  show(panes) {
    this.panes = panes.map(({ title, content, label }) => {
      const sheet = h("div", { class: "sheet" }, content);
      const pane = h("figure", { class: "pane", role: "img", "aria-label": label }, sheet, title && h("figcaption", { text: title }));
      pane.sheet = sheet;
      return pane;
    });
    this.element.replaceChildren(...this.panes);
    this.fit();
  }

  /** Set the size of the sheets in pixels of the image. */
  resize(width, height) {
    if (this.width === width && this.height === height) return;
    Object.assign(this, { width, height });
    this.fit();
  }

  /** Choose how many panes are beside each other, so that the pictures are as large as they can be. */
  spread() {
    const { clientWidth: width, clientHeight: height } = this.element;
    const many = this.panes.length;
    const scale = (across) => Math.min(width / across / this.width, height / Math.ceil(many / across) / this.height);
    const ways = this.panes.map((_, at) => at + 1).sort((one, other) => scale(other) - scale(one));
    this.element.style.setProperty("--across", ways[0] || 1);
  }

  fit() {
    this.spread();
    const pane = this.panes[0];
    if (!pane || !pane.clientWidth) return;
    const room = 12;
    this.scale = Math.min((pane.clientWidth - 2 * room) / this.width, (pane.clientHeight - 2 * room) / this.height, MOST_ZOOM);
    this.center();
    this.isFitted = true;
    this.move();
  }

  /** Show a pixel of the image as one of the screen. */
  actual() {
    this.scale = 1 / devicePixelRatio;
    this.center();
    this.isFitted = false;
    this.move();
  }

  center() {
    const pane = this.panes[0];
    this.x = Math.round((pane.clientWidth - this.width * this.scale) / 2);
    this.y = Math.round((pane.clientHeight - this.height * this.scale) / 2);
  }

  zoomBy(factor, x, y) {
    const pane = this.panes[0];
    if (!pane) return;
    const [atX, atY] = [x ?? pane.clientWidth / 2, y ?? pane.clientHeight / 2];
    const scale = Math.min(MOST_ZOOM, Math.max(0.02, this.scale * factor));
    this.x = atX - ((atX - this.x) * scale) / this.scale;
    this.y = atY - ((atY - this.y) * scale) / this.scale;
    this.scale = scale;
    this.isFitted = false;
    this.move();
  }

  panBy(x, y) {
    this.x += x;
    this.y += y;
    this.isFitted = false;
    this.move();
  }

  move() {
    for (const { sheet } of this.panes) {
      sheet.style.width = `${this.width}px`;
      sheet.style.height = `${this.height}px`;
      sheet.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
      sheet.classList.toggle("pixels", this.scale >= 3);
    }
    this.onZoom(this.scale);
  }

  /** Return where an event is, as shares of the sheet, or null outside. */
  at(event) {
    const pane = event.target.closest(".pane");
    if (!pane) return null;
    const box = pane.getBoundingClientRect();
    const x = (event.clientX - box.left - this.x) / (this.width * this.scale);
    const y = (event.clientY - box.top - this.y) / (this.height * this.scale);
    return x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y, pane: this.panes.indexOf(pane) } : null;
  }

  point(event) {
    this.onPoint(this.at(event));
  }

  wheel(event) {
    event.preventDefault();
    const pane = event.target.closest(".pane");
    if (!pane) return;
    const box = pane.getBoundingClientRect();
    const lines = event.deltaMode === 1 ? 24 : 1;
    this.zoomBy(Math.exp(-event.deltaY * lines * 0.0016), event.clientX - box.left, event.clientY - box.top);
  }

  drag(event) {
    if (event.button !== 0 || !event.target.closest(".pane")) return;
    this.element.setPointerCapture(event.pointerId);
    let { clientX, clientY } = event;
    const move = (next) => {
      this.panBy(next.clientX - clientX, next.clientY - clientY);
      ({ clientX, clientY } = next);
    };
    this.element.classList.add("drags");
    this.element.addEventListener("pointermove", move);
    const end = () => {
      this.element.classList.remove("drags");
      this.element.removeEventListener("pointermove", move);
    };
    this.element.addEventListener("lostpointercapture", end, { once: true });
  }
}
