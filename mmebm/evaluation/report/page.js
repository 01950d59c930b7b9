"use strict";
// The transition: one number, the frame, moves images, texts, sketches, values and markers together.
for (const root of document.querySelectorAll(".transition")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const slider = root.querySelector("input[type=range]");
  const play = root.querySelector(".play");
  const strips = [...root.querySelectorAll(".strip")];
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const levels = data.moving.map(m => m.levels && Uint8Array.from(atob(m.levels), c => c.charCodeAt(0)));

  const sketch = (bytes, from, count, base) => {
    let path = `M0 ${255 - base}`;
    for (let i = from; i < from + count; i++) path += `V${255 - bytes[i]}h1`;
    return `${path}V${255 - base}z`;
  };

  const show = () => {
    const frame = Number(slider.value);
    root.style.setProperty("--t", frame);
    const said = [`step ${data.steps[frame]}`];
    root.querySelector("[data-value=step]").textContent = data.steps[frame];
    for (const [key, values] of Object.entries(data.values)) {
      const value = values[frame] === null ? "–" : values[frame].toFixed(3);
      root.querySelector(`[data-value=${key}]`).textContent = value;
      said.push(`${data.titles[key]} ${value}`);
      const at = data.marks[key][frame];
      const line = root.querySelector(`[data-chart=${key}] line.cursor`);
      const dot = root.querySelector(`[data-chart=${key}] circle.cursor`);
      for (const element of [line, dot]) element.style.display = at ? "" : "none";
      if (!at) continue;
      line.setAttribute("x1", at[0]);
      line.setAttribute("x2", at[0]);
      dot.setAttribute("cx", at[0]);
      dot.setAttribute("cy", at[1]);
    }
    slider.setAttribute("aria-valuetext", said.join(", "));
    data.moving.forEach((moves, k) => {
      if (moves.texts) {
        strips[k].querySelectorAll("li").forEach((item, i) => { item.textContent = moves.texts[frame][i] || "(nothing)"; });
      } else if (moves.levels) {
        const paths = strips[k].querySelectorAll("path");
        paths.forEach((path, i) => {
          path.setAttribute("d", sketch(levels[k], (frame * paths.length + i) * moves.points, moves.points, moves.base));
        });
      }
    });
  };

  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  play.hidden = false;
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "Pause";
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, still.matches ? 1000 : 250);
  });
  slider.addEventListener("input", () => { if (timer) stop(); show(); });
  show();
}
