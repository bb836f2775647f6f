"use strict";
// Turns the meshes of a report. Nothing is drawn while nothing changes, and nothing turns by itself for those who asked for less motion.

const VERTEX = `
attribute vec3 position; attribute vec3 normal;
uniform mat3 turn; uniform float scale;
varying vec3 facing;
void main() {
  facing = turn * normal;
  vec3 place = turn * position * scale;
  gl_Position = vec4(place.xy, -0.5 * place.z, 1.0);
}`;
const FRAGMENT = `
precision mediump float;
varying vec3 facing;
uniform vec3 color; uniform float opacity;
void main() {
  vec3 n = normalize(facing);
  if (!gl_FrontFacing) n = -n;
  float light = max(dot(n, vec3(-0.4, 0.5, 0.77)), 0.0);
  float dark = opacity == 1.0 ? 0.3 : 0.6;
  float rim = (1.0 - abs(n.z)) * (1.0 - abs(n.z));
  float alpha = opacity == 1.0 ? 1.0 : mix(opacity, min(1.0, 4.0 * opacity), rim);
  if (!gl_FrontFacing && opacity < 1.0) alpha *= 0.3;
  gl_FragColor = vec4(color * (dark + (1.0 - dark) * light) + 0.23 * pow(light, 24.0), alpha);
}`;
const SIDES = { R: [1, 0, 0], L: [-1, 0, 0], A: [0, 1, 0], P: [0, -1, 0], S: [0, 0, 1], I: [0, 0, -1] };
const BACKGROUND = [11 / 255, 13 / 255, 16 / 255, 1];
const TURNS_PER_SECOND = 0.06;

for (const figure of document.querySelectorAll(".scene")) show(figure);

function show(figure) {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl", { antialias: true, alpha: false });
  if (!gl) return; // the still picture stays
  const scene = JSON.parse(figure.querySelector("script").textContent);
  const stage = figure.querySelector(".stage");
  const program = linked(gl);
  const uniform = Object.fromEntries(["turn", "scale", "color", "opacity"].map((name) => [name, gl.getUniformLocation(program, name)]));
  const boxes = [...figure.querySelectorAll("input")];
  const meshes = scene.surfaces.map((surface) => uploaded(gl, program, surface));

  let azimuth = -0.61, elevation = 0.35, turning = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let visible = true, due = false, last = null;

  const letters = Object.entries(SIDES).map(([letter, side]) => {
    const element = document.createElement("span");
    element.className = "side";
    element.textContent = letter;
    return [element, side.map((part, axis) => part * (scene.half[axis] + 0.08))];
  });
  const button = document.createElement("button");
  button.type = "button";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", figure.querySelector("img").alt + " Arrow keys turn it.");
  stage.append(canvas, ...letters.map(([element]) => element), button);
  figure.classList.add("live");

  function draw(now) {
    due = false;
    if (turning && last !== null) azimuth += 2 * Math.PI * TURNS_PER_SECOND * Math.min(now - last, 100) / 1000;
    last = turning ? now : null;
    const size = Math.max(1, Math.round(stage.clientWidth * Math.min(devicePixelRatio, 2)));
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const turn = camera(azimuth, elevation), scale = 0.92 / Math.max(scene.radius, 1);
    gl.viewport(0, 0, size, size);
    gl.clearColor(...BACKGROUND);
    gl.depthMask(true);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(program);
    gl.uniformMatrix3fv(uniform.turn, false, turn);
    gl.uniform1f(uniform.scale, scale);
    const shown = meshes.filter((_, index) => boxes[index].checked);
    gl.disable(gl.BLEND);
    gl.disable(gl.CULL_FACE);
    for (const mesh of shown) if (mesh.opacity === 1) paint(mesh);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.enable(gl.CULL_FACE);
    gl.depthMask(false);
    // From the inside out, each with its far side first, and of the near side only what is nearest.
    for (const mesh of shown.slice().reverse()) {
      if (mesh.opacity === 1) continue;
      gl.cullFace(gl.FRONT);
      paint(mesh);
      gl.cullFace(gl.BACK);
      paint(mesh);
    }
    for (const [element, place] of letters) {
      const [x, y, z] = [0, 1, 2].map((row) => scale * (turn[row] * place[0] + turn[row + 3] * place[1] + turn[row + 6] * place[2]));
      element.style.transform = `translate(${50 * (x + 1) / 100 * stage.clientWidth}px, ${50 * (1 - y) / 100 * stage.clientWidth}px) translate(-50%, -50%)`;
      element.style.opacity = z < -0.05 ? 0.35 : 1;
    }
    button.textContent = turning ? "Stop" : "Turn";
    if (turning && visible) later();
  }

  function paint(mesh) {
    gl.uniform3f(uniform.color, ...mesh.color);
    gl.uniform1f(uniform.opacity, mesh.opacity);
    mesh.bind();
    gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_SHORT, 0);
  }

  function later() {
    if (!due) requestAnimationFrame(draw);
    due = true;
  }

  function turnBy(right, up) {
    turning = false;
    azimuth += right;
    elevation = Math.max(-1.57, Math.min(1.57, elevation + up));
    later();
  }

  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); turnBy(0, 0); });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) turnBy(-6 * event.movementX / stage.clientWidth, 6 * event.movementY / stage.clientWidth);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!step) return;
    event.preventDefault();
    turnBy(...step);
  });
  button.addEventListener("click", () => { turning = !turning; later(); });
  for (const box of boxes) box.addEventListener("change", later);
  addEventListener("resize", later);
  new IntersectionObserver((entries) => { visible = entries.at(-1).isIntersecting; last = null; if (visible) later(); }).observe(stage);
  later();
}

// Columns of the matrix from the patient (right, front, head) to the screen (right, up, towards the viewer).
function camera(azimuth, elevation) {
  const [sa, ca, se, ce] = [Math.sin(azimuth), Math.cos(azimuth), Math.sin(elevation), Math.cos(elevation)];
  const right = [-ca, sa, 0], ahead = [sa * ce, ca * ce, se], up = [-sa * se, -ca * se, ce];
  return [0, 1, 2].flatMap((axis) => [right[axis], up[axis], ahead[axis]]);
}

function uploaded(gl, program, surface) {
  const buffers = [
    ["position", gl.SHORT, 6, surface.positions, gl.ARRAY_BUFFER],
    ["normal", gl.BYTE, 3, surface.normals, gl.ARRAY_BUFFER],
    [null, null, null, surface.indices, gl.ELEMENT_ARRAY_BUFFER],
  ].map(([name, kind, stride, data, target]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const buffer = gl.createBuffer();
    gl.bindBuffer(target, buffer);
    gl.bufferData(target, bytes, gl.STATIC_DRAW);
    return { place: name && gl.getAttribLocation(program, name), kind, stride, buffer, target, length: bytes.length };
  });
  return {
    color: surface.color.map((channel) => channel / 255),
    opacity: surface.opacity,
    count: buffers[2].length / 2,
    bind() {
      for (const { place, kind, stride, buffer, target } of buffers) {
        gl.bindBuffer(target, buffer);
        if (target !== gl.ARRAY_BUFFER) continue;
        gl.enableVertexAttribArray(place);
        gl.vertexAttribPointer(place, 3, kind, true, stride, 0);
      }
    },
  };
}

function linked(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}
