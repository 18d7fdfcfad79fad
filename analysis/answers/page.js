"use strict";
// Texts of models and judges get into the document as text nodes alone: el() makes them of strings, and nothing here parses markup.

const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);
const CONTROLS = [...document.querySelectorAll("[data-view]")];
const FILTERS = ["search", "outcome", "category", "texts", "ended", "sort"];
const DEFAULTS = { benchmark: index.benchmarks[0].key, a: index.a, b: index.b, question: "", judge: "", baseline: "" };
for (const key of FILTERS) DEFAULTS[key] = "";
const SAME = 0.05; // as judged: half of what a value's last digit shown stands for
const CELLS = 25e6; // of the table of common subsequences: 50 MB; two answers of 4,096 tokens take less

let view = { ...DEFAULTS }; // what is shown: the address and the controls say the same
let pairs = []; // of the benchmark, in its order: a question and both runs' rows
let shown = []; // those of them that pass the filters, in the order asked for
let current = null;
let updates = 0;

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// -- data -----------------------------------------------------------------------------------------------------------

const unpacked = new Map();

function block(id) {
  if (!unpacked.has(id)) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
    unpacked.set(id, new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json());
  }
  return unpacked.get(id);
}

const textOf = (row) => row.turns.map((turn) => turn.text);
const charactersOf = (row) => textOf(row).reduce((sum, text) => sum + [...text].length, 0); // code points, as in scores.json
const isCut = (row) => row.turns.some((turn) => turn.finish_reason !== "stop");
const hasFailed = (row) => row.turns.some((turn) => turn.judgments.some((judgment) => judgment.failure));
const minus = (b, a) => (b == null || a == null ? null : b - a);

function pairOf(question, a, b, position) {
  const gap = minus(b.value, a.value);
  const judged = [a, b].flatMap((row) => row.turns.flatMap((turn) => turn.judgments.map((judgment) => judgment.text ?? "")));
  return {
    number: position + 1, question, a, b, gap,
    outcome: gap === null ? "none" : Math.abs(gap) < SAME ? "same" : gap > 0 ? "b" : "a",
    equal: textOf(a).join("\0") === textOf(b).join("\0"),
    characters: { a: charactersOf(a), b: charactersOf(b) },
    searched: [...question.prompts, ...textOf(a), ...textOf(b), ...judged].join("\n").toLowerCase(),
  };
}

// -- what differs -----------------------------------------------------------------------------------------------------

// Words and signs, each with the space before it.
const tokens = (text) => text.match(/\s*(?:[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}]+)*|\S)/gu) ?? [];

// Which tokens of a and b stand outside their longest common subsequence, as two arrays of 0 and 1; space is not compared.
function differing(a, b) {
  const ids = new Map();
  const [x, y] = [a, b].map((side) => Int32Array.from(side, (token) => {
    const word = token.trimStart();
    if (!ids.has(word)) ids.set(word, ids.size);
    return ids.get(word);
  }));
  const marks = [new Uint8Array(x.length).fill(1), new Uint8Array(y.length).fill(1)];
  const keep = (i, j) => { marks[0][i] = 0; marks[1][j] = 0; };
  let start = 0, n = x.length, m = y.length;
  while (start < n && start < m && x[start] === y[start]) { keep(start, start); start++; }
  while (n > start && m > start && x[n - 1] === y[m - 1]) keep(--n, --m);
  const width = m - start + 1;
  if ((n - start + 1) * width > CELLS) return marks;
  const common = new Uint16Array((n - start + 1) * width); // [i, j]: the length of what x from i and y from j have in common
  for (let i = n - start - 1; i >= 0; i--) {
    for (let j = m - start - 1; j >= 0; j--) {
      const at = i * width + j;
      common[at] = x[start + i] === y[start + j] ? common[at + width + 1] + 1 : Math.max(common[at + width], common[at + 1]);
    }
  }
  for (let i = 0, j = 0; i < n - start && j < m - start;) {
    const at = i * width + j;
    if (x[start + i] === y[start + j]) keep(start + i++, start + j++);
    else if (common[at + width] >= common[at + 1]) i++;
    else j++;
  }
  return marks;
}

// The text with its marked tokens in <mark>, neighbours in one.
function marked(text, parts, marks) {
  const node = el("p", { class: "text" });
  let plain = "", mark = "";
  const flush = () => {
    if (mark) node.append(plain, el("mark", null, mark));
    if (mark) plain = mark = "";
  };
  parts.forEach((part, i) => {
    if (!marks[i]) { flush(); plain += part; return; }
    const word = part.trimStart();
    if (mark) mark += part;
    else { plain += part.slice(0, part.length - word.length); mark = word; }
  });
  flush();
  node.append(plain + text.slice(parts.join("").length));
  return node;
}

// -- a question ---------------------------------------------------------------------------------------------------------

const benchmarkOf = () => index.benchmarks.find((benchmark) => benchmark.key === view.benchmark);
const runOf = (side) => index.runs.find((run) => run.key === view[side]);
const fixed = (value, digits) => (value == null ? "–" : value.toFixed(digits).replace(/^-(?=0(\.0*)?$)/, "").replace("-", "−"));
const signed = (value, digits) => (value > 0 && Number(value.toFixed(digits)) ? "+" : "") + fixed(value, digits);
const withUnit = (value, digits) => (value == null ? "–" : fixed(value, digits) + benchmarkOf().unit);
const WORDS = { a: "A better", b: "B better", same: "the same", none: "not judged" };

const tag = (side) => el("span", { class: `tag ${side}` }, side.toUpperCase());

// What A has and what B has, each with its letter.
function both(label, a, b) {
  const value = (side, text) => el("span", { class: "value" }, tag(side), ` ${text}`);
  return el("span", null, `${label}: `, value("a", a), "  ", value("b", b));
}

function head(pair) {
  const { question, a, b } = pair;
  const values = both(benchmarkOf().measure, withUnit(a.value, 1), withUnit(b.value, 1));
  const gap = pair.gap === null ? "" : ` (B − A ${signed(pair.gap, 1)})`;
  const outcome = el("span", { class: `better-${pair.outcome}` }, WORDS[pair.outcome], gap);
  const same = pair.equal ? el("span", { class: "soft" }, "both gave the same text") : null;
  const [category, id] = [question.category, `id ${question.id}`].map((text) => el("span", { class: "soft" }, text));
  return el("div", { class: "head" }, el("h2", null, `Question ${pair.number}`), category, id, values, outcome, same);
}

function answer(side, turn, parts, marks) {
  const run = runOf(side);
  const text = turn.text.trim() ? marked(turn.text, parts, marks) : el("p", { class: "blank" }, "a blank answer");
  const node = el("section", { class: `side ${side}` }, el("h3", null, tag(side), ` ${run.name} · ${run.setting}`), text);
  if (view.judge) {
    const judgments = turn.judgments.flatMap((judgment, i) => [
      el("h3", null, `${nameOf(turn.judgments, i)}: ${said(judgment)}`),
      el("p", { class: "text" }, judgment.text ?? "no text"),
    ]);
    node.append(el("div", { class: "judgments" }, ...judgments));
  }
  return node;
}

const said = (judgment) => judgment.verdict ?? `failed: ${judgment.failure}`;

function nameOf(judgments, i) {
  if (view.benchmark === "arena_hard") return `Game ${i + 1}`;
  return judgments.length > 1 ? `Judgment ${i + 1}` : "Judge";
}

function measures(pair, t) {
  const [a, b] = [pair.a.turns[t], pair.b.turns[t]];
  const body = el("tbody");
  const line = (name, ...cells) => {
    body.append(el("tr", null, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", null, cell))));
  };
  const number = (name, x, y, digits) => line(name, fixed(x, digits), fixed(y, digits), signed(minus(y, x), digits));
  for (let i = 0; i < Math.max(a.judgments.length, b.judgments.length); i++) {
    const [x, y] = [a, b].map((turn) => turn.judgments[i]);
    line(nameOf((x ? a : b).judgments, i), ...[x, y].map((judgment) => (judgment ? said(judgment) : "–")), "");
  }
  number("Characters", [...a.text].length, [...b.text].length, 0);
  number("Tokens", a.length, b.length, 0);
  const per = (turn, key) => (turn[key] == null ? null : turn[key] / turn.length);
  const ratio = (turn) => minus(turn.logp, turn.reference_logp);
  number("Log-likelihood", a.logp, b.logp, 2);
  number("… a token", per(a, "logp"), per(b, "logp"), 3);
  number("Start model’s log-likelihood", a.reference_logp, b.reference_logp, 2);
  number("… a token", per(a, "reference_logp"), per(b, "reference_logp"), 3);
  number("Log-ratio to the start model", ratio(a), ratio(b), 2);
  line("Ended", ...[a, b].map((turn) => (turn.finish_reason === "stop" ? "by itself" : `cut (${turn.finish_reason})`)), "");
  if (pair.a.oracle && pair.b.oracle) {
    const [x, y] = [pair.a.oracle, pair.b.oracle];
    number("Oracle, 0 to 10", x.score, y.score, 2);
    for (const key of Object.keys(x)) {
      if (key !== "score" && (x[key] || y[key])) number(`… ${key}`, x[key], y[key], 0);
    }
  }
  const top = ["", tag("a"), tag("b"), "B − A"].map((name) => el("th", { scope: "col" }, name));
  return el("table", { "aria-label": "What is known of both answers" }, el("thead", null, el("tr", null, ...top)), body);
}

function detail(pair) {
  const { question } = pair;
  const turns = question.prompts.map((prompt, t) => {
    const [a, b] = [pair.a.turns[t], pair.b.turns[t]];
    const parts = [tokens(a.text), tokens(b.text)];
    const marks = differing(...parts);
    const title = question.prompts.length > 1 ? `Prompt, turn ${t + 1}` : "Prompt";
    const asked = el("div", { class: "prompt" }, el("h3", null, title), el("p", { class: "text" }, prompt));
    const node = el("section", { class: "turn" }, asked);
    node.append(el("div", { class: "sides" }, answer("a", a, parts[0], marks[0]), answer("b", b, parts[1], marks[1])));
    if (view.baseline && question.baseline) {
      const text = el("p", { class: "text" }, question.baseline[t]);
      node.append(el("div", { class: "baseline" }, el("h3", null, "The baseline’s answer"), text));
    }
    node.append(measures(pair, t));
    return node;
  });
  return [head(pair), ...turns];
}

// -- the list -------------------------------------------------------------------------------------------------------------

function passes(pair) {
  const cut = { a: isCut(pair.a), b: isCut(pair.b) };
  return (!view.outcome || (view.outcome === "failed" ? hasFailed(pair.a) || hasFailed(pair.b) : pair.outcome === view.outcome))
    && (!view.category || pair.question.category === view.category)
    && (!view.texts || pair.equal === (view.texts === "equal"))
    && (!view.ended || { both: !cut.a && !cut.b, a: cut.a, b: cut.b, cut: cut.a || cut.b }[view.ended])
    && (!view.search || pair.searched.includes(view.search.toLowerCase()));
}

function sorted(list) {
  const [side, key] = view.sort.split("-");
  const gap = { value: (pair) => pair.gap, length: (pair) => pair.characters.b - pair.characters.a,
    oracle: (pair) => minus(pair.b.oracle?.score, pair.a.oracle?.score) }[key];
  if (!gap) return list;
  const order = (pair) => (gap(pair) === null ? Infinity : side === "b" ? -gap(pair) : gap(pair)); // the unknown last
  const keyed = list.map((pair) => [order(pair), pair]);
  return keyed.sort(([x, p], [y, q]) => (x === y ? p.number - q.number : x - y)).map(([, pair]) => pair);
}

function mean(side) {
  const judged = shown.map((pair) => pair[side]).filter((row) => row.value !== null);
  const weight = judged.reduce((sum, row) => sum + row.weight, 0);
  return weight ? judged.reduce((sum, row) => sum + row.value * row.weight, 0) / weight : null;
}

function summarize() {
  const count = (outcome) => shown.filter((pair) => pair.outcome === outcome).length;
  const length = (side) => (shown.length ? shown.reduce((sum, pair) => sum + pair.characters[side], 0) / shown.length : null);
  const parts = [el("span", null, el("strong", null, `${shown.length} of ${pairs.length}`), " questions")];
  parts.push(both(`mean ${benchmarkOf().measure}`, withUnit(mean("a"), 2), withUnit(mean("b"), 2)));
  const unjudged = count("none") ? `, not judged ${count("none")}` : "";
  parts.push(el("span", null, `A better ${count("a")}, B better ${count("b")}, the same ${count("same")}${unjudged}`));
  parts.push(both("mean characters", fixed(length("a"), 0), fixed(length("b"), 0)));
  byId("summary").replaceChildren(...parts);
}

function list() {
  const items = shown.map((pair) => {
    const { outcome } = pair;
    const isBetter = outcome === "a" || outcome === "b";
    const gap = isBetter ? `${outcome.toUpperCase()} +${fixed(Math.abs(pair.gap), 1)}` : outcome === "same" ? "same" : "not judged";
    return el("li", { role: "option", id: `item-${pair.number}`, "aria-selected": "false" },
      el("span", { class: "count" }, String(pair.number)),
      el("span", { class: "asked" }, pair.question.prompts[0].slice(0, 200)),
      el("span", { class: `gap ${isBetter ? `better-${outcome}` : "none"}` }, gap));
  });
  byId("list").replaceChildren(...items);
}

function show(pair) {
  current = pair;
  const box = byId("list");
  box.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  box.removeAttribute("aria-activedescendant");
  const at = shown.indexOf(pair);
  const item = pair && byId(`item-${pair.number}`);
  if (item) {
    item.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", item.id);
    // scrollIntoView would move the page too
    box.scrollTop = Math.min(item.offsetTop, Math.max(box.scrollTop, item.offsetTop + item.offsetHeight - box.clientHeight));
  }
  byId("number").value = pair ? pair.number : "";
  const listed = at < 0 ? ", not listed" : shown.length < pairs.length || view.sort ? `, ${at + 1} of ${shown.length} listed` : "";
  byId("place").textContent = pair ? `of ${pairs.length}${listed}` : "";
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at + 1 >= shown.length;
  byId("detail").replaceChildren(...(pair ? detail(pair) : [el("p", { class: "notice" }, "No question passes the filters.")]));
}

// -- the view -----------------------------------------------------------------------------------------------------------

function say(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => el("option", { value }, text)));
  select.value = chosen;
}

function read() {
  view = { ...DEFAULTS };
  const unknown = [];
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    const known = { benchmark: index.benchmarks, a: index.runs, b: index.runs }[key];
    if (!(key in DEFAULTS) || (known && !known.some((one) => one.key === value))) unknown.push(`${key}=${value}`);
    else view[key] = value;
  }
  return unknown;
}

function address() {
  const parts = Object.entries(view).filter(([key, value]) => value !== DEFAULTS[key]);
  history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
}

// Bring the page to `view`. A question that the filters leave out is kept where `keep` says so: an address or a number names it.
async function update({ keep = false, unknown = [] } = {}) {
  const turn = ++updates;
  const [questions, a, b] = await Promise.all([view.benchmark, `${view.benchmark}/${view.a}`, `${view.benchmark}/${view.b}`].map(block));
  if (turn !== updates) return; // another choice came meanwhile
  pairs = questions.map((question, i) => pairOf(question, a[i], b[i], i));
  const categories = [...new Set(questions.map((question) => question.category))].filter(Boolean).sort();
  options(byId("category"), [["", "any"], ...categories.map((name) => [name, name])], "");
  const hasOracle = Boolean(a[0].oracle);
  for (const option of byId("sort").options) option.hidden = option.disabled = option.value.endsWith("oracle") && !hasOracle;
  byId("baseline").disabled = !questions[0].baseline;
  for (const control of CONTROLS) {
    if (control.type === "checkbox") control.checked = Boolean(view[control.id]);
    else control.value = view[control.id];
    if (control.type === "checkbox" || control.value === view[control.id]) continue;
    unknown.push(`${control.id}=${view[control.id]}`);
    control.value = view[control.id] = DEFAULTS[control.id];
  }
  if (view.question && !questions.some((question) => question.id === view.question)) unknown.push(`question=${view.question}`);
  say(unknown.length ? `The address names what this page does not hold: ${unknown.join(", ")}.` : "");
  refilter(keep);
}

function refilter(keep) {
  shown = sorted(pairs.filter(passes));
  const active = FILTERS.filter((key) => view[key]).length;
  byId("active").textContent = active ? `(${active} active)` : "";
  byId("clear").disabled = !active;
  list();
  summarize();
  const named = pairs.find((pair) => pair.question.id === view.question);
  go(named && (keep || shown.includes(named)) ? named : shown[0] ?? null, false);
}

function go(pair, scroll = true) {
  view.question = pair ? pair.question.id : "";
  show(pair);
  address();
  if (scroll && byId("question").getBoundingClientRect().top < 0) byId("question").scrollIntoView();
}

function step(by) {
  const at = shown.indexOf(current);
  const next = shown[at < 0 ? 0 : at + by];
  if (next) go(next);
}

function changed(key, value) {
  view[key] = value;
  if (key === "benchmark") view.question = view.category = "";
  if (["benchmark", "a", "b"].includes(key)) guarded();
  else if (FILTERS.includes(key)) refilter(false);
  else go(current, false);
}

function swap() {
  [view.a, view.b] = [view.b, view.a];
  guarded();
}

function guarded(how) {
  update(how).catch((error) => {
    say(`The answers cannot be unpacked (${error.message}). Browsers from 2023 on can: Chromium 80, Firefox 113, Safari 16.4.`);
    throw error;
  });
}

for (const control of CONTROLS) {
  control.addEventListener(control.type === "search" ? "input" : "change", () => {
    changed(control.id, control.type === "checkbox" ? (control.checked ? "1" : "") : control.value);
  });
}
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("swap").addEventListener("click", swap);
byId("clear").addEventListener("click", () => {
  for (const key of FILTERS) view[key] = byId(key).value = "";
  refilter(false);
});
byId("help-button").addEventListener("click", () => byId("help").showModal());
byId("list").addEventListener("click", (event) => {
  const item = event.target.closest("li");
  if (item) go(pairs[Number(item.id.slice("item-".length)) - 1]);
});
byId("number").addEventListener("change", () => {
  const pair = pairs[Number(byId("number").value) - 1];
  byId("number").blur();
  if (pair) { say(""); go(pair); return; }
  say(`There is no question ${byId("number").value}; ${benchmarkOf().name} has 1 to ${pairs.length}.`);
  byId("number").value = current ? current.number : "";
});
window.addEventListener("hashchange", () => guarded({ keep: true, unknown: read() }));

const toggle = (id) => () => byId(id).click();
const KEYS = {
  j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
  s: swap, t: toggle("judge"), b: toggle("baseline"),
  "/": () => { byId("filters").open = true; byId("search").focus(); byId("search").select(); },
  "?": () => byId("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const target = event.target;
  if (target.matches('select, input:not([type="checkbox"])')) {
    if (target.id === "search" && event.key === "Escape") changed("search", (target.value = ""));
    if (event.key === "Escape" || (event.key === "Enter" && target.id === "search")) target.blur();
    return;
  }
  const inList = target === byId("list") && { ArrowDown: () => step(1), ArrowUp: () => step(-1) }[event.key];
  if (/^\d$/.test(event.key)) {
    byId("number").focus(); // the digit itself goes there
    byId("number").select();
  } else if (inList || Object.hasOwn(KEYS, event.key)) {
    event.preventDefault();
    (inList || KEYS[event.key])();
  }
});

byId("caption").textContent = index.caption;
options(byId("benchmark"), index.benchmarks.map((benchmark) => [benchmark.key, benchmark.name]));
for (const side of ["a", "b"]) {
  for (const setting of new Set(index.runs.map((run) => run.setting))) {
    const runs = index.runs.filter((run) => run.setting === setting);
    const choices = runs.map((run) => el("option", { value: run.key }, `${run.name} · ${setting}`));
    byId(side).append(el("optgroup", { label: setting }, ...choices));
  }
}
byId("filters").open = window.matchMedia("(min-width: 44rem)").matches;
guarded({ keep: true, unknown: read() });
