"use strict";
// Text of models reaches the page through textContent alone.
const $ = id => document.getElementById(id);
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") node.addEventListener("click", value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child != null));
  return node;
};
const many = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
const words = name => String(name).replaceAll("_", " ");
const ask = async (path, options) => {
  const answer = await fetch(path, options);
  const body = await answer.json().catch(() => ({ error: `the viewer answered ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
};
const PAGE = 50;
const state = { asked: {}, blind: true, offset: 0, total: 0, rows: [], at: 0, shown: false, trace: null, other: null, kinds: {}, address: null };
const KEYS = { refusal: ["1", "2", "3", "4"], harm: ["s", "u"], patterns: ["q", "w", "e", "r", "t"] };

// Actions run one after the other: a key pressed while a trace is loading waits for that trace, and acts on it.
let last = Promise.resolve(), waiting = 0;
function queued(action) {
  const count = step => { waiting += step; document.body.setAttribute("aria-busy", waiting > 0); };
  count(1);
  last = last.then(action).catch(error => { $("count").textContent = error.message; }).finally(() => count(-1));
}

async function start() {
  const about = await ask("api/about");
  $("name").textContent = about.name;
  state.kinds = about.kinds;
  for (const [kind, values] of Object.entries(about.facets)) {
    if (Object.keys(values).length < 2) continue;
    const select = el("select", { "data-kind": kind, "aria-label": kind }, el("option", { value: "" }, `any ${kind}`), ...Object.keys(values).map(value => el("option", { value })));
    select.addEventListener("change", refilter);
    $("filters").append(select);
  }
  $("versus").append(...Object.keys(about.facets.arm).map(arm => el("option", { value: arm }, `and ${arm} does not`)));
  $("toreport").hidden = !about.report;
  state.calibrate = about.calibrate;
  restore();
  const help = { "j / k": "next, previous", "/": "search", h: "show or hide harmful text", c: "the next arm's reply to the same prompt, side by side", x: "close it", "0": "no pattern", "⌫": "take back your labels", "?": "this list" };
  for (const [kind, keys] of Object.entries(KEYS)) keys.forEach((key, i) => { help[key] = `${kind}: ${words(state.kinds[kind][i])}`; });
  for (const [key, text] of Object.entries(help)) $("keytable").append(el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, text)));
  await load();
}

// The address holds filters and trace: a reload keeps them, and it can be sent to anyone with the same run.
function restore() {
  state.address = location.hash;
  const { trace, ...asked } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (asked.arm) asked.arm = asked.arm.split(":").pop(); // a combined report names an arm RUN:ARM
  Object.assign(state, { asked, sought: trace });
  document.querySelectorAll("select[data-kind]").forEach(select => { select.value = state.asked[select.dataset.kind] ?? ""; });
  $("q").value = state.asked.q ?? "";
  $("order").value = state.asked.order ?? "";
  $("versus").value = state.asked.versus ?? "";
  $("unlabelled").checked = Boolean(state.asked.unlabelled);
}
function refilter() {
  const asked = {};
  document.querySelectorAll("select[data-kind]").forEach(select => { if (select.value) asked[select.dataset.kind] = select.value; });
  for (const name of ["q", "order", "versus"]) if ($(name).value) asked[name] = $(name).value;
  if ($("unlabelled").checked) asked.unlabelled = "1";
  Object.assign(state, { asked, sought: null });
  write(asked);
  queued(() => state.asked === asked && load());
}
window.addEventListener("hashchange", () => { if (location.hash !== state.address) queued(() => { restore(); return load(); }); });
// An address that was changed meanwhile is not overwritten: it is read in its turn.
function write(asked) {
  if (state.address !== null && location.hash !== state.address) return;
  history.replaceState(null, "", `#${new URLSearchParams(asked)}`);
  state.address = location.hash;
}

// On a narrow screen the controls are folded away; the button says how many filters are set.
const fold = open => $("fold").setAttribute("aria-expanded", open);
$("fold").addEventListener("click", () => fold($("fold").getAttribute("aria-expanded") === "false"));

// While labelling, verdicts are hidden beside the trace and in the list until the label is given.
const blind = () => state.blind && ($("by").value.trim() !== "" || state.asked.order === "random");
const about = row => [row.arm + (row.seed == null ? "" : `/${row.seed}`), row.bench, row.attack === "none" ? "" : row.attack, ...(blind() ? [] : row.tags.map(words)), row.labelled.length ? "✎" : ""].filter(Boolean).join(" · ");
const head = row => row.intent === "harmful" && !state.shown ? `harmful prompt ${row.id.slice(0, 6)} (h shows it)` : row.head || "no text";

// A page of the list; without an offset the one with the trace in the address, else the first.
async function load(offset, at = 0) {
  const from = offset == null ? { facets: 1, ...(state.sought ? { trace: state.sought } : {}) } : { offset };
  const found = await ask(`api/traces?${new URLSearchParams({ ...state.asked, ...from, limit: PAGE })}`);
  if (offset == null) ({ offset, at } = found);
  Object.assign(state, { offset, total: found.total, rows: found.rows, at: Math.max(0, Math.min(at < 0 ? found.rows.length - 1 : at, found.rows.length - 1)) });
  for (const option of found.facets ? document.querySelectorAll("select[data-kind] option[value]:not([value=''])") : []) {
    const n = found.facets[option.parentElement.dataset.kind][option.value] ?? 0;
    option.textContent = `${words(option.value) || "none"} (${n.toLocaleString("en")})`;
  }
  const last = offset + found.rows.length, set = Object.keys(state.asked).length;
  $("fold").textContent = set ? `filters (${set})` : "filters";
  const partly = found.indexed < 1 && $("q").value ? `; ${Math.floor(100 * found.indexed)} % of the text is indexed so far` : "";
  $("count").textContent = found.total ? `${(offset + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ${found.total.toLocaleString("en")}${partly}` : `nothing matches${partly}`;
  $("rows").replaceChildren(...found.rows.map((row, place) => el("li", { on: () => queued(() => show(place)), "data-row": row.row },
    el("div", { class: "head", dir: "auto" }, head(row)),
    el("div", { class: "soft about" }, about(row)))));
  if (found.facets) drawn(found.draw);
  $("back").disabled = offset === 0;
  $("on").disabled = last >= found.total;
  if (found.rows.length) return show(state.at);
  state.trace = null;
  $("left").replaceChildren();
  close();
}

// The bands of a random draw, and how precise a rate its labels will give.
function drawn(draw) {
  $("draw").hidden = !draw;
  if (!draw) return;
  const bands = Object.entries(draw.bands), wide = draw.widths.map(([count, half]) => half == null ? `${count} are too few` : `${count} to ±${Math.round(100 * half)} points`);
  $("draw").textContent = bands.length
    ? `Drawn in turn from ${bands.map(([band, size]) => `${words(band)} (${size.toLocaleString("en")})`).join(", ")}. Labels of an arm on a benchmark give its rate without the judge's errors: ${wide.join(", ")}.`
    : "No random draw: a filter selects by outcome. Labels given here correct no rate.";
}

async function show(place, all = "") {
  state.at = place;
  const row = state.rows[place];
  [...$("rows").children].forEach((item, i) => item.setAttribute("aria-current", i === place));
  $("rows").children[place]?.scrollIntoView({ block: "nearest" });
  const trace = state.trace = await ask(`api/trace/${row.row}${all}`);
  write({ ...state.asked, trace: trace.id });
  draw($("left"), trace, row, () => queued(() => show(place, "?all=1")));
  $("left").scrollTop = 0;
  if (!all) close();
}

function close() { state.other = null; $("right").hidden = true; $("right").replaceChildren(); }

async function beside(sibling) {
  state.other = sibling.row;
  const trace = await ask(`api/trace/${sibling.row}`);
  $("right").hidden = false;
  draw($("right"), trace, sibling, null);
  if (state.trace && (state.shown || trace.intent !== "harmful")) for (const part of ["thinking", "answer"]) differ(part);
}

// Words that only one of two texts has, by their longest common subsequence.
function differ(part) {
  const boxes = ["left", "right"].map(side => $(side).querySelector(`.${part === "answer" ? "answer" : "thinking"}`));
  const texts = boxes.map(box => box?.textContent.split(/(\s+)/) ?? []), [a, b] = texts;
  if (!a.length || !b.length || a.length * b.length > 4e6) return;
  const width = b.length + 1, common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
  const marks = [a.map(() => true), b.map(() => true)];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { marks[0][i++] = false; marks[1][j++] = false; }
    else if (common[(i + 1) * width + j] >= common[i * width + j + 1]) i++; else j++;
  }
  boxes.forEach((box, side) => box.replaceChildren(...texts[side].map((word, i) => marks[side][i] && word.trim() ? el("ins", {}, word) : word)));
}

function passage(trace, kind, parts) {
  const box = el("div", { class: `text ${kind}`, dir: "auto" });
  if (parts == null) box.append(el("span", { class: "soft" }, "none"));
  else if (typeof parts === "string") box.textContent = parts;
  else if (!parts.some(piece => piece[0])) box.append(el("span", { class: "soft" }, "empty"));
  else for (const [text, names] of parts) box.append(names.length && !blind() ? el("mark", { "data-names": names.map(words).join(", ") }, text) : text);
  if (trace.intent === "harmful" && !state.shown) {
    // Removed, not blurred: it cannot be read through, found in the page or read aloud.
    const held = [...box.childNodes], size = box.textContent.length;
    box.replaceChildren(el("button", { type: "button", on: () => { box.replaceChildren(...held); box.classList.remove("masked"); } }, `may hold harmful text, ${size.toLocaleString("en")} characters: show`));
    box.classList.add("masked");
  }
  return box;
}

function draw(box, trace, row, more) {
  const by = $("by").value.trim();
  const title = `${row.arm}${row.seed == null ? "" : `/${row.seed}`}`;
  const facts = [words(trace.outcome), trace.category, trace.attack, trace.tokens == null ? "" : `${trace.tokens} tokens`, ...trace.notes].filter(Boolean).join(" · ");
  const found = trace.findings.filter(finding => finding.present).map(finding => el("span", { class: "tag", title: finding.reason }, words(finding.pattern)));
  const parts = [el("h2", {}, title), el("div", { class: "soft" }, facts), el("div", {}, ...(blind() ? [] : found))];
  parts.push(el("h3", {}, "prompt"), passage(trace, "prompt", trace.prompt));
  if (trace.question) parts.push(el("h3", {}, "the question inside"), passage(trace, "prompt", trace.question));
  if (trace.gold != null) parts.push(el("h3", {}, "right answer"), el("div", { class: "text" }, trace.gold));
  parts.push(el("h3", {}, "thinking"), passage(trace, "thinking", trace.texts.thinking));
  parts.push(el("h3", {}, "answer"), passage(trace, "answer", trace.texts.answer));
  if (trace.more && more) parts.push(el("p", {}, el("button", { type: "button", on: more }, `show ${trace.more.toLocaleString("en")} characters more`)));
  if (trace.verdicts.length) {
    const body = trace.verdicts.map(v => el("tr", {}, el("td", {}, v.judge), el("td", {}, v.part), el("td", {}, el("span", { class: `tag ${v.label ?? ""}` }, v.label == null ? "cannot tell" : words(v.label))), el("td", {}, v.score == null ? "" : String(v.score)), el("td", { class: "soft" }, (v.reason || v.raw || "").replace("cannot tell: ", ""))));
    parts.push(el("details", { open: !blind() }, el("summary", {}, blind() ? "verdicts, hidden while you label" : "verdicts"), el("table", {}, el("tbody", {}, ...body))));
  }
  if (trace.siblings.length && more) {
    parts.push(el("h3", {}, "other replies to the same prompt"), el("div", {}, ...trace.siblings.map(s => el("button", { type: "button", class: "sibling", on: () => queued(() => beside(s)) }, `${s.arm}${s.seed == null ? "" : `/${s.seed}`}`))));
  }
  parts.push(el("h3", {}, "labels"));
  for (const [kind, values] of Object.entries(state.kinds)) {
    const given = trace.labels[kind]?.[by];
    parts.push(el("div", { class: "labels" }, el("span", { class: "soft" }, `${kind} `), ...values.map((value, i) => el("button", { type: "button", "aria-pressed": kind === "patterns" ? String(given?.includes(value) ?? false) : String(given === value), on: () => queued(() => label(trace, box, row, kind, value)) }, `${words(value)} (${KEYS[kind][i]})`)), ...(kind === "patterns" ? [el("button", { type: "button", "aria-pressed": String(given?.length === 0), on: () => queued(() => label(trace, box, row, kind, null)) }, "no pattern (0)")] : []), given === undefined ? null : el("button", { type: "button", on: () => queued(() => label(trace, box, row, kind, undefined)) }, "take back")));
  }
  const others = Object.entries(trace.labels).flatMap(([kind, people]) => Object.entries(people).map(([who, value]) => `${who}: ${kind} ${Array.isArray(value) ? value.map(words).join(", ") || "no pattern" : words(value)}`));
  if (!blind() || Object.values(trace.labels).some(people => by in people)) parts.push(el("p", { class: "soft given" }, others.join(" · ")));
  box.replaceChildren(...parts);
}

async function label(trace, box, row, kind, value) {
  const by = $("by").value.trim();
  if (!by) { fold(true); $("by").focus(); $("count").textContent = "enter your name first"; return; }
  const given = trace.labels[kind]?.[by];
  let next = value;
  if (value === undefined) next = null;
  else if (kind === "patterns") {
    next = value === null ? [] : given?.includes(value) ? given.filter(name => name !== value) : [...(given ?? []), value];
    if (value !== null && !next.length) next = null;
  } else if (given === value) next = null;
  trace.labels = await ask(`api/label/${trace.row}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ kind, value: next, by, asked: box === $("left") ? String(new URLSearchParams(state.asked)) : "" }) });
  if (box === $("left")) { row.labelled = Object.keys(trace.labels); return redraw(); }
  draw(box, trace, row, null);
}
function redraw() {
  [...$("rows").children].forEach((item, i) => { item.firstChild.textContent = head(state.rows[i]); item.lastChild.textContent = about(state.rows[i]); });
  if (state.trace) draw($("left"), state.trace, state.rows[state.at], () => queued(() => show(state.at, "?all=1")));
}
const labelShown = (kind, value) => state.trace && label(state.trace, $("left"), state.rows[state.at], kind, value);

function go(step) {
  const next = state.at + step;
  if (next >= 0 && next < state.rows.length) return show(next);
  if (step > 0 && state.offset + state.rows.length < state.total) return load(state.offset + PAGE);
  if (step < 0 && state.offset > 0) return load(Math.max(0, state.offset - PAGE), -1);
}

async function mask() {
  state.shown = !state.shown;
  $("mask").setAttribute("aria-pressed", state.shown);
  $("mask").textContent = state.shown ? "hide harmful text (h)" : "show harmful text (h)";
  const other = state.trace?.siblings.find(sibling => sibling.row === state.other);
  redraw();
  if (other) await beside(other);
}

async function help() {
  const { agreement } = await ask("api/about");
  const lines = Object.entries(agreement).flatMap(([kind, a]) => [`${kind}: ${many(a.labels, "label", "labels")} by ${many(a.people.length, "person", "people")}`, ...a.pairs.map(p => `${p.a} and ${p.b} agree on ${Math.round(100 * (p.same.value ?? 0))} % of ${p.n}${p.kappa == null ? "" : `, kappa ${p.kappa.toFixed(2)}`}`)]);
  $("agreement").textContent = [...lines, ...Object.values(state.calibrate)].join("; ");
  $("keys").showModal();
}

const actions = {
  j: () => go(1), k: () => go(-1), ArrowDown: () => go(1), ArrowUp: () => go(-1), h: mask, "?": help, x: close,
  "/": null,
  c: () => {
    const all = state.trace?.siblings ?? [], at = all.findIndex(s => s.row === state.other);
    if (all.length) return beside(all[(at + 1) % all.length]);
    $("count").textContent = "no other arm has a reply to this prompt";
  },
  0: () => labelShown("patterns", null),
  Backspace: async () => { for (const kind of Object.keys(state.kinds)) if (state.trace?.labels[kind]?.[$("by").value.trim()] !== undefined) await labelShown(kind, undefined); },
};
for (const [kind, keys] of Object.entries(KEYS)) keys.forEach((key, i) => { actions[key] = () => labelShown(kind, state.kinds[kind][i]); });
document.addEventListener("keydown", event => {
  if (event.key === "Escape") { document.activeElement.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName) || $("keys").open || !(event.key in actions)) return;
  event.preventDefault();
  if (event.key === "/") $("q").focus(); else queued(actions[event.key]);
});
let typing;
$("q").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(refilter, 180); });
for (const name of ["order", "versus", "unlabelled"]) $(name).addEventListener("change", refilter);
$("blind").addEventListener("change", () => { state.blind = $("blind").checked; redraw(); });
$("by").value = localStorage.getItem("by") ?? "";
$("by").addEventListener("input", () => { localStorage.setItem("by", $("by").value.trim()); redraw(); });
$("mask").addEventListener("click", () => queued(mask));
$("help").addEventListener("click", () => queued(help));
$("back").addEventListener("click", () => queued(() => load(Math.max(0, state.offset - PAGE))));
$("on").addEventListener("click", () => queued(() => load(state.offset + PAGE)));
queued(start);
