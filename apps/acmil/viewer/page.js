"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const { picture, size, side } = content;
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

const viewer = OpenSeadragon({
  element: document.getElementById("slide"),
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: "TOP_LEFT",
  imageSmoothingEnabled: true,
  maxZoomPixelRatio: 8,
  animationTime: 0.4,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  tileSources: {
    width: picture.width,
    height: picture.height,
    tileSize: picture.tile,
    minLevel: 0,
    maxLevel: picture.levels.length - 1,
    getTileUrl: (level, x, y) => picture.levels[level][y][x],
  },
});
// In the viewer's coordinates the slide is 1 wide.
const unit = 1 / size[0];
const layers = [];
let shown = 0;
let hidden = false;

function show() {
  const opacity = hidden ? 0 : document.getElementById("opacity").value / 100;
  layers.forEach((layer, index) => layer && layer.setOpacity(index === shown ? opacity : 0));
}

function listTop() {
  const list = document.getElementById("top");
  list.replaceChildren();
  content.top[shown]?.forEach(([x, y, score], index) => {
    const button = element("button", { type: "button" }, `${index + 1}`, element("span", { textContent: `${score} x` }),
      element("small", { textContent: `${x}, ${y}` }));
    button.addEventListener("click", () => {
      list.querySelectorAll("[aria-current]").forEach((other) => other.removeAttribute("aria-current"));
      button.setAttribute("aria-current", "true");
      const box = new OpenSeadragon.Rect(x * unit, y * unit, side * unit, side * unit);
      viewer.clearOverlays();
      viewer.addOverlay({ element: element("div", { className: "found" }), location: box });
      const margin = content.margin * side * unit;
      viewer.viewport.fitBounds(new OpenSeadragon.Rect(box.x - margin, box.y - margin, box.width + 2 * margin, box.height + 2 * margin));
    });
    list.append(element("li", {}, button));
  });
}

const choices = document.getElementById("layers");
content.layers.forEach((layer, index) => {
  const radio = element("input", { type: "radio", name: "layer", checked: index === 0 });
  radio.addEventListener("change", () => { shown = index; hidden = false; show(); listTop(); });
  choices.append(element("label", {}, radio, layer.name));
});

viewer.addOnceHandler("open", () => {
  content.layers.forEach((layer, index) => viewer.addTiledImage({
    tileSource: { type: "image", url: layer.url },
    x: 0,
    y: 0,
    width: layer.width * unit,
    opacity: 0,
    success: ({ item }) => { layers[index] = item; show(); },
  }));
  listTop();
  measure();
});

document.getElementById("opacity").addEventListener("input", () => { hidden = false; show(); });
document.getElementById("home").addEventListener("click", () => { viewer.clearOverlays(); viewer.viewport.goHome(); });
const hide = document.getElementById("hide");
const toggle = () => { hidden = !hidden; hide.setAttribute("aria-pressed", String(hidden)); show(); };
hide.addEventListener("click", toggle);
document.addEventListener("keydown", (event) => { if (event.key === "h" || event.key === "H") toggle(); });

function measure() {
  if (!content.mpp) return;
  const wide = viewer.viewport.getContainerSize().x;
  const micrometres = viewer.viewport.getBounds().width * size[0] * content.mpp / wide;
  const wanted = 140 * micrometres;
  const power = 10 ** Math.floor(Math.log10(wanted));
  const length = [5, 2, 1].map((step) => step * power).find((step) => step <= wanted);
  const bar = document.getElementById("bar");
  bar.hidden = false;
  bar.querySelector("i").style.width = `${length / micrometres}px`;
  bar.querySelector("span").textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
}
viewer.addHandler("animation", measure);
viewer.addHandler("resize", measure);
