// The page: sends each chosen file to v1/predictions and shows the answer. No library, no build, nothing from elsewhere.

const byId = (id) => document.getElementById(id);
const ABREAST = 2; // requests at a time: the service batches them, and others get their turn
const PATIENCE = 20; // times that a busy service is asked again
const UNITS = { px: "px", mm: "mm", mm2: "mm²", mm3: "mm³", ml: "ml", um: "µm", ms: "ms", s: "s", deg: "°", percent: "%" };
const PICTURES = [".jpg", ".png", ".tif"];

let key = "";
let limits = null;
let suffixes = [];
let asked = 0;
let answered = 0;
let failed = 0;
let round = 0; // goes up when the results are cleared: answers of an earlier round are not shown
const waiting = [];
const held = []; // files that came before the model was known, or while the key was being checked
let running = 0;
const urls = new Set();

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  return fetch(path, { ...options, headers });
}

async function pause(seconds) {
  await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}

async function showModel() {
  for (;;) {
    let response = null;
    try {
      response = await ask("v1/model");
    } catch {
      byId("model").textContent = "The service cannot be reached. Trying again …";
    }
    if (response?.ok) {
      const model = await response.json();
      limits = model.limits;
      suffixes = model.suffixes;
      byId("model").textContent = `${model.name}, version ${model.version}`;
      document.title = `${model.name} · Fovea`;
      byId("card-link").hidden = false;
      byId("key-form").hidden = true;
      byId("drop").hidden = false;
      byId("choose").accept = accepted(suffixes);
      byId("together-row").hidden = !suffixes.includes(".zip");
      const pixels = suffixes.some((suffix) => PICTURES.includes(suffix)) ? ` and ${limits.max_pixels / 1e6} megapixels` : "";
      byId("formats").textContent =
        `${suffixes.map((suffix) => suffix.slice(1).toUpperCase()).join(", ")}; up to ${limits.max_upload_mb} MB${pixels} each.`;
      add(held.splice(0));
      return;
    }
    if (response?.status === 401) {
      byId("model").textContent = "Locked";
      byId("drop").hidden = true;
      if (key) byId("key-hint").textContent = "That key was not accepted. Check it, or ask whoever runs the service.";
      key = "";
      byId("key-form").hidden = false;
      byId("key").focus();
      return;
    }
    if (response) byId("model").textContent = "The model is loading …";
    await pause(2);
  }
}

// Browsers look at the part behind the last dot only, and DICOM files often have no suffix at all: then every file can be chosen.
function accepted(suffixes) {
  return suffixes.includes(".dcm") ? "" : [...new Set(suffixes.map((suffix) => suffix.slice(suffix.lastIndexOf("."))))].join(",");
}

function add(files) {
  if (byId("drop").hidden) {
    held.push(...files);
    return;
  }
  if (!files.length) return;
  const together = byId("together").checked && !byId("together-row").hidden;
  for (const group of together ? [[...files]] : Array.from(files, (file) => [file])) {
    const section = byId("result").content.firstElementChild.cloneNode(true);
    section.querySelector("h2").textContent = nameOf(group);
    byId("results").append(section);
    waiting.push({ group, section, round });
    asked += 1;
  }
  count();
  next();
}

function next() {
  while (running < ABREAST && waiting.length) {
    const work = waiting.shift();
    running += 1;
    predict(work).finally(() => {
      running -= 1;
      if (work.round === round) {
        answered += 1;
        count();
      }
      next();
    });
  }
}

function count() {
  byId("toolbar").hidden = asked === 0;
  const files = `${asked} file${asked === 1 ? "" : "s"}`;
  const left = failed ? `, ${failed} without an answer` : "";
  byId("status").textContent = answered < asked ? `${answered} of ${files} answered …` : `${files} answered${left}.`;
}

function nameOf(group) {
  return group.length === 1 ? group[0].name : `${group[0].name} and ${group.length - 1} more`;
}

async function predict({ group, section, round: mine }) {
  try {
    const size = group.reduce((sum, file) => sum + file.size, 0);
    if (limits && size > limits.max_upload_mb * 1e6) {
      throw new Error(`${(size / 1e6).toFixed(1)} MB; the limit is ${limits.max_upload_mb} MB.`);
    }
    if (limits && group.length > limits.max_files) {
      throw new Error(`${group.length} files; the limit is ${limits.max_files}. Put them into one .zip.`);
    }
    const answer = await send(group);
    if (mine !== round) return;
    let place = section;
    for (const result of answer.results) {
      if (result !== answer.results[0]) {
        const another = byId("result").content.firstElementChild.cloneNode(true);
        place.after(another);
        place = another;
      }
      show(place, group, result, answer.results.length === 1);
    }
    if (answer.failures.length) throw new Error(answer.failures.map((failure) => failure.detail).join("\n"));
  } catch (error) {
    if (mine !== round) return;
    failed += 1;
    const line = section.querySelector(".problem");
    line.textContent = error instanceof TypeError ? "The service cannot be reached. Is it still running?" : error.message;
    line.hidden = false;
    section.querySelector(".waiting").hidden = true;
  }
}

async function send(group) {
  const form = new FormData();
  for (const file of group) form.append("files", file, file.name);
  const query = `include=result&include=preview${group.length > 1 ? "&together=true" : ""}`;
  for (let attempt = 0; ; attempt += 1) {
    const response = await ask(`v1/predictions?${query}`, { method: "POST", body: form, headers: { Accept: "application/json" } });
    const busy = response.status === 429 || response.status === 503;
    if (busy && attempt < PATIENCE) {
      await pause(Number(response.headers.get("Retry-After")) || 1);
      continue;
    }
    if (response.status === 401) showModel();
    const type = response.headers.get("Content-Type") ?? "";
    if (type.startsWith("application/json")) return response.json();
    const problem = type.startsWith("application/problem+json") ? await response.json() : null;
    throw new Error(problem ? `${problem.detail} (request ${problem.request_id})` : `The service answered ${response.status}.`);
  }
}

function show(section, group, result, only) {
  const name = result.sample ? `${nameOf(group)}, ${result.sample}` : nameOf(group);
  section.querySelector("h2").textContent = name;
  section.querySelector(".waiting").hidden = true;
  section.querySelector(".answer").hidden = false;

  const picture = result.files.preview ?? (result.files.result?.media_type.startsWith("image/") ? result.files.result : null);
  const original = section.querySelector(".original");
  const overlay = section.querySelector(".overlay");
  const slider = section.querySelector(".opacity");
  original.alt = `${name}, as uploaded`;
  overlay.alt = `${name}, with the prediction drawn over it`;
  const alone = () => {
    // The browser cannot draw this format, or the file holds more than this sample: the overlay stands alone.
    original.remove();
    slider.hidden = true;
    section.querySelector(".stack").hidden = !picture;
  };
  original.addEventListener("error", alone);
  if (only && group.length === 1) original.src = urlOf(group[0]);
  else alone();
  if (picture) overlay.src = urlOf(blobOf(picture));
  else {
    overlay.remove();
    slider.hidden = true;
  }
  const range = slider.querySelector("input");
  range.addEventListener("input", () => {
    overlay.style.opacity = range.value / 100;
    slider.querySelector("output").textContent = `${range.value} %`;
  });

  const rows = section.querySelector("tbody");
  for (const [label, value] of measurements(result.summary)) {
    const row = rows.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = label;
    row.append(head);
    row.insertCell().textContent = value;
  }

  const { files, ...numbers } = result;
  const downloads = section.querySelector(".downloads");
  if (files.result) downloads.append(link(`Result (${kindOf(files.result.name)})`, blobOf(files.result), files.result.name));
  if (files.preview) downloads.append(link("Overlay (PNG)", blobOf(files.preview), files.preview.name));
  const stem = (files.preview ?? files.result)?.name.replace(/_(overlay|result)(\.[a-z.]+)?$/, "") ?? result.file;
  downloads.append(link("Measurements (JSON)", new Blob([JSON.stringify(numbers, null, 2)], { type: "application/json" }), `${stem}.json`));
}

function measurements(summary, before = "") {
  return Object.entries(summary).flatMap(([name, value]) => {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return measurements(value, `${before}${words(name)}, `);
    const parts = name.split("_");
    const unit = parts.length > 1 ? UNITS[parts.at(-1)] : undefined;
    const label = words((unit ? parts.slice(0, -1) : parts).join("_"));
    const shown = text(value);
    return [[before ? before + label.toLowerCase() : label, unit && value !== null ? `${shown} ${unit}` : shown]];
  });
}

function words(name) {
  const spaced = name.replaceAll("_", " ");
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

function text(value) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
  if (!Array.isArray(value)) return String(value);
  const flat = value.every((item) => item === null || typeof item !== "object");
  return flat && value.length <= 6 ? value.map(text).join(", ") || "none" : `${value.length} entries, in the JSON`;
}

function kindOf(name) {
  return name.match(/\.([a-z]+(\.gz)?)$/)?.[1].toUpperCase() ?? "file";
}

function link(label, blob, name) {
  const anchor = document.createElement("a");
  anchor.className = "button";
  anchor.textContent = label;
  anchor.href = urlOf(blob);
  anchor.download = name;
  return anchor;
}

function blobOf({ base64, media_type: type }) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}

function urlOf(blob) {
  const url = URL.createObjectURL(blob);
  urls.add(url);
  return url;
}

async function showCard(event) {
  event.preventDefault();
  const response = await ask("v1/model/card");
  const card = new DOMParser().parseFromString(response.ok ? await response.text() : "The card cannot be read now.", "text/html").body;
  for (const image of card.querySelectorAll("img")) image.replaceWith(image.alt);
  for (const anchor of card.querySelectorAll("a")) Object.assign(anchor, { target: "_blank", rel: "noopener noreferrer" });
  byId("card-text").replaceChildren(...card.childNodes);
  byId("card").showModal();
}

byId("choose").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
byId("clear").addEventListener("click", () => {
  round += 1;
  asked = answered = failed = waiting.length = 0;
  for (const url of urls) URL.revokeObjectURL(url);
  urls.clear();
  byId("results").replaceChildren();
  count();
  byId("choose").focus();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  byId("key").value = "";
  showModel();
});
byId("card-link").addEventListener("click", showCard);
byId("card-close").addEventListener("click", () => byId("card").close());
// The whole window takes a drop: a file let go beside the box would otherwise replace the page.
for (const name of ["dragover", "drop", "dragleave"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") add(event.dataTransfer.files);
  });
}
showModel();
