"use strict";
// The clip browser. Text from data reaches the page through textContent alone: nothing of it is read as HTML.
// The address's fragment holds the filters and the clip, so every view is a link: #view=clips&cell0=right_inconsistent

const $ = (id) => document.getElementById(id);
const { runs, clips, cells } = JSON.parse($("data").textContent);
const form = $("filters"), list = $("list"), rows = $("rows"), video = $("video"), audio = $("audio");
const ROW = 56, EXTRA = 6; // height of a row in pixels (as in the style sheet), rows drawn beyond the edges
let found = []; // indices of the clips that pass the filters
let at = -1; // position in `found` of the clip that is shown
let current = null; // that clip

for (const clip of clips) {
  // one lower-case text a run, so that a search is a substring test
  const heads = [clip.id, clip.label, clip.transcript ?? ""].join(" ");
  clip.texts = clip.runs.map((run) =>
    [heads, ...(run ? [run.answer, run.raw, ...run.parts.map((part) => part[1])] : [])].join(" ").toLowerCase());
}

function make(tag, name, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function badge(cell, long) {
  const { sign, name } = cell ? cells[cell] : { sign: "–", name: "not in this run" };
  const node = make("span", `cell ${cell ?? "absent"}`, make("b", "", sign), long ? ` ${name}` : null);
  node.title = name;
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", name);
  return node;
}

function claim(run) {
  if (!run?.absent) return null;
  const node = make("span", "claim", "⚠");
  node.title = `evidence from what the clip lacks: ${run.absent.join(", ")}`;
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", node.title);
  return node;
}

const shownRuns = () => (form.run?.value ? [Number(form.run.value)] : runs.map((_, i) => i));

// ---- filters

function passes(clip, want) {
  if (want.label && clip.label !== want.label) return false;
  if (want.dominant && clip.dominant !== want.dominant) return false;
  for (let i = 0; i < runs.length; i++) {
    if (want[`cell${i}`] && clip.runs[i]?.cell !== want[`cell${i}`]) return false;
  }
  if (want.absent && !want.runs.some((i) => clip.runs[i]?.absent)) return false;
  if (want.run && !clip.runs[want.run]) return false;
  if (want.change) {
    const changed = clip.runs.some((run) => run?.cell !== clip.runs[0]?.cell);
    if (changed !== (want.change === "changed")) return false;
  }
  return want.words.length === 0 || want.runs.some((i) => want.words.every((word) => clip.texts[i].includes(word)));
}

function filter(keep) {
  const want = Object.fromEntries(new FormData(form));
  want.words = (want.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  want.runs = shownRuns();
  found = [];
  for (let i = 0; i < clips.length; i++) if (passes(clips[i], want)) found.push(i);
  $("count").textContent = `${found.length.toLocaleString("en")} of ${clips.length.toLocaleString("en")} clips`;
  rows.style.height = `${found.length * ROW}px`;
  $("none").hidden = found.length > 0;
  const index = keep ? clips.indexOf(keep) : -1;
  select(Math.max(0, found.indexOf(index)));
}

function remember() {
  const parts = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  parts.set("view", "clips");
  if (current) parts.set("clip", current.id);
  $("nav-clips").href = `#${parts}`;
  if ($("clips").hidden) return;
  try {
    history.replaceState(null, "", `#${parts}`);
  } catch {} // Safari allows a hundred in thirty seconds; the address then lags behind
}

function open() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const browsing = parts.get("view") === "clips";
  if ($("clips").hidden === browsing) scrollTo(0, 0);
  $("overview").hidden = browsing;
  $("clips").hidden = !browsing;
  document.body.classList.toggle("browsing", browsing);
  for (const [id, on] of [["nav-overview", !browsing], ["nav-clips", browsing]]) {
    on ? $(id).setAttribute("aria-current", "page") : $(id).removeAttribute("aria-current");
  }
  if (!browsing) return void (video.pause(), audio.pause());
  for (const control of form.elements) if (control.name) control.value = parts.get(control.name) ?? "";
  filter(clips.find((clip) => clip.id === parts.get("clip")) ?? null);
}

// ---- the list: only the rows that can be seen are in the document

function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - EXTRA);
  const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + EXTRA);
  const visible = [];
  for (let i = first; i < last; i++) {
    const clip = clips[found[i]];
    const dot = clip.dominant ? make("i", `dot ${clip.dominant}`) : null;
    const about = make("span", "about", clip.label, dot, clip.dominant);
    const row = make("div", "row", make("span", "id", clip.id), about,
      make("span", "badges", ...shownRuns().flatMap((k) => [claim(clip.runs[k]), badge(clip.runs[k]?.cell)].filter(Boolean))));
    row.id = `row${i}`;
    row.style.top = `${i * ROW}px`;
    row.dataset.at = i;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", i === at);
    row.setAttribute("aria-posinset", i + 1);
    row.setAttribute("aria-setsize", found.length);
    visible.push(row);
  }
  rows.replaceChildren(...visible);
}

function select(position) {
  at = Math.min(Math.max(position, 0), found.length - 1);
  const clip = found.length ? clips[found[at]] : null;
  const top = at * ROW, height = list.clientHeight;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + height) list.scrollTop = top + ROW - height;
  draw();
  at < 0 ? list.removeAttribute("aria-activedescendant") : list.setAttribute("aria-activedescendant", `row${at}`);
  show(clip);
  remember();
}

// ---- the clip that is shown

function play(clip) {
  const player = clip?.audio ? audio : video, other = clip?.audio ? video : audio;
  other.hidden = true;
  other.removeAttribute("src");
  player.hidden = !clip?.src;
  $("file").hidden = !clip?.src;
  if (!clip?.src) {
    player.removeAttribute("src");
    const gone = clip?.missing ? `The file is not there: ${clip.missing}` : "The page was made without the clips.";
    $("trouble").textContent = gone;
  } else if (player.getAttribute("src") !== clip.src) {
    $("trouble").textContent = clip.odd ? `Few browsers or none play ${clip.odd}; --copy_clips makes copies that play.` : "";
    player.src = $("file").href = clip.src;
  }
}

function bars(clip) {
  const weights = Object.entries(clip.importance ?? {});
  if (!weights.length) return clip.dominant ? [make("h3", "", `Dominant: ${clip.dominant}`)] : [];
  const lines = weights.map(([name, weight]) => {
    const fill = make("span", `fill ${name}`);
    fill.style.width = `${100 * Math.min(1, Math.max(0, weight))}%`;
    const line = make("div", name === clip.dominant ? "bar dominant" : "bar", make("span", "name", name));
    line.append(make("span", "track", fill), make("span", "value", `${(100 * weight).toFixed(0)}\u00a0%`));
    return line;
  });
  return [make("h3", "", "Importance"), ...lines];
}

function column(run, clip, index) {
  const head = make("h3", "runname", make("i", `key run${runs.length > 1 ? index % 6 : 1}`), runs[index]);
  if (!run) return make("section", "response", head, make("p", "quiet", "This clip is not in this run."));
  const text = make("p", "reasoning");
  text.dir = "auto";
  for (const [modality, part] of run.parts) {
    if (modality) text.append(make("span", `seg ${modality}`, make("i", "", modality), part), " ");
    else text.append(make("span", "rest", part), " ");
  }
  const mark = (value) => make("dd", value === clip.label ? "same" : "other", value);
  const none = (why) => make("dd", "quiet", why);
  const answer = run.answer ? mark(run.answer) : none(run.raw ? `“${run.raw}”, no known label` : "none found");
  const facts = make("dl", "facts", make("dt", "", "answer"), answer, make("dt", "", "judge reads"));
  facts.append(run.judged ? mark(run.judged) : none("no judgement"));
  if (run.why) facts.append(make("dt", "", "because"), make("dd", "quiet", run.why));
  if (run.absent) facts.append(make("dt", "", "not in the clip"), make("dd", "", claim(run), ` ${run.absent.join(", ")}`));
  return make("section", "response", head, badge(run.cell, true), facts, text);
}

function show(clip) {
  current = clip;
  $("detail").hidden = !clip;
  play(clip);
  if (!clip) return;
  $("name").textContent = clip.id;
  $("place").textContent = `${(at + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}`;
  $("label").textContent = clip.label;
  $("importance").replaceChildren(...bars(clip));
  $("transcript").hidden = !clip.transcript;
  $("transcript").lastChild.textContent = clip.transcript ?? "";
  const indices = shownRuns();
  const cellsOf = new Set(clip.runs.map((run) => run?.cell));
  $("changed").hidden = runs.length < 2 || cellsOf.size < 2;
  $("responses").replaceChildren(...indices.map((i) => column(clip.runs[i], clip, i)));
}

// ---- events

let waiting;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => filter(current), 60);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => filter(current)));
list.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
rows.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row) select(Number(row.dataset.at));
  if (row && matchMedia("(max-width: 56rem)").matches) $("detail").scrollIntoView({ block: "start" });
});
$("previous").addEventListener("click", () => select(at - 1));
$("next").addEventListener("click", () => select(at + 1));
for (const player of [video, audio]) {
  player.addEventListener("error", () => {
    if (player.getAttribute("src")) $("trouble").textContent = "The browser cannot play this file; the link opens it.";
  });
}

document.addEventListener("keydown", (event) => {
  if ($("clips").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, select");
  if (typing) {
    if (event.key === "Escape") list.focus();
    return;
  }
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1), inList = event.target === list;
  const arrows = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  const steps = { j: 1, k: -1, ...(inList ? arrows : {}) };
  if (event.key in steps) select(at + steps[event.key]);
  else if (event.key === "/") form.q.focus(), form.q.select();
  else if (event.key === "p") {
    const player = current?.audio ? audio : video;
    if (player.paused) player.play().catch(() => {}); // the error event says what is wrong
    else player.pause();
  } else return;
  event.preventDefault();
});

addEventListener("hashchange", open);
addEventListener("resize", draw);
document.body.classList.add("scripted");
open();
document.body.dataset.ready = Math.round(performance.now()); // milliseconds from opening to usable, for who measures
