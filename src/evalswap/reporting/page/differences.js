// The browser of differing outputs: a filtered list, of which only the rows in view are in the document, and one difference.
"use strict";

(() => {
  const at = (id) => document.getElementById(id);
  const list = at("list");
  const view = at("difference");
  const form = at("filters");
  const controls = form.elements;
  const names = JSON.parse(at("names").textContent); // classes as people call them
  const BEYOND = 6; // rows drawn above and below those in view

  let all = []; // every difference
  let shown = []; // those that pass the filters
  let chosen = -1; // place in `shown`
  let rowHeight = 60;

  // --- data -------------------------------------------------------------------------------------------------------

  async function load() {
    const node = at("data");
    const binary = atob(node.textContent);
    node.remove();
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i); // Uint8Array.from takes a second here
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const content = await new Response(stream).json();
    const texts = content.texts.map((text) => (typeof text === "string" ? [0, text, 0] : text));
    const groups = content.groups.map(([dataset, reference, contender]) => ({ dataset, reference, contender }));
    all = content.differences.map((fields) => difference(fields, groups, texts));
  }

  function difference(fields, groups, texts) {
    const [group, row, kind, referenceRight, otherRight, referenceAnswer, otherAnswer, gold, prompt] = fields;
    const [referenceText, otherText, referenceFinish, otherFinish, first] = fields.slice(9);
    const [position, unit, referenceToken, otherToken, referenceLogprob, otherLogprob, gap] = first;
    const short = (index) => (index === null ? null : texts[index][1] + (texts[index][2] ? "…" : ""));
    return {
      ...groups[group], row, kind, gold: short(gold), prompt: texts[prompt],
      flip: `${referenceRight ? "right" : "wrong"}-${otherRight ? "right" : "wrong"}`,
      sides: [
        { right: Boolean(referenceRight), answer: short(referenceAnswer), text: texts[referenceText],
          finish: short(referenceFinish), token: short(referenceToken), logprob: referenceLogprob },
        { right: Boolean(otherRight), answer: short(otherAnswer), text: texts[otherText],
          finish: short(otherFinish), token: short(otherToken), logprob: otherLogprob },
      ],
      position, unit, gap, searched: null,
    };
  }

  // --- filters ----------------------------------------------------------------------------------------------------

  /** Return what a search looks through; made when the first search asks for it. */
  function searched(item) {
    item.searched ??= [item.prompt[1], item.gold, ...item.sides.flatMap((side) => [side.answer, side.text[1]])]
      .join("\n").toLowerCase();
    return item.searched;
  }

  function filter() {
    const query = controls.query.value.trim().toLowerCase();
    const row = /^#(\d+)$/.exec(query)?.[1];
    const wanted = ["dataset", "contender", "kind", "flip"].map((name) => [name, controls[name].value]);
    const before = shown[chosen];
    shown = all.filter((item) =>
      wanted.every(([name, value]) => value === "" || (value === "flips" ? flips(item) : item[name] === value)) &&
      (query === "" || (row ? item.row === Number(row) : searched(item).includes(query))));
    at("shown").textContent = `${shown.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} shown`;
    at("everything").hidden = query === "" && wanted.every(([, value]) => value === "");
    list.firstElementChild.style.height = `${shown.length * rowHeight}px`;
    choose(Math.max(0, shown.indexOf(before)));
  }

  const flips = (item) => item.flip === "right-wrong" || item.flip === "wrong-right";

  function fillChoices() {
    for (const name of ["dataset", "contender", "kind"]) {
      const counts = new Map();
      for (const item of all) counts.set(item[name], (counts.get(item[name]) ?? 0) + 1);
      for (const [value, count] of counts) {
        const text = `${name === "kind" ? names[value] ?? value : value} (${count.toLocaleString("en")})`;
        controls[name].append(element("option", { value, text }));
      }
      controls[name].parentElement.hidden = counts.size < 2;
    }
  }

  // --- the list ---------------------------------------------------------------------------------------------------

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / rowHeight) - BEYOND);
    const end = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / rowHeight) + BEYOND);
    const options = [];
    for (let place = first; place < end; place += 1) options.push(option(place));
    list.firstElementChild.replaceChildren(...options);
    if (chosen >= first && chosen < end) list.setAttribute("aria-activedescendant", `option-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function option(place) {
    const item = shown[place];
    const made = element("div", {
      role: "option", id: `option-${place}`, class: "option", "aria-selected": place === chosen,
      "aria-setsize": shown.length, "aria-posinset": place + 1,
    });
    made.style.transform = `translateY(${place * rowHeight}px)`;
    const where = element("span", { class: "where" });
    where.append(element("b", { text: `#${item.row}` }), " ", visible(place_(item)));
    const what = element("span", { class: "what" });
    what.append(visible(names[item.kind] ?? item.kind), " · ", oneLine(item.sides[0].answer, 24), " → ", oneLine(item.sides[1].answer, 24));
    made.append(where, direction(item), what);
    return made;
  }

  const place_ = (item) => `${item.dataset} · ${item.contender}`;

  function direction(item) {
    const text = { "right-wrong": "right → wrong", "wrong-right": "wrong → right", "right-right": "both right" };
    return element("span", { class: `flip ${item.flip}`, text: text[item.flip] ?? "both wrong" });
  }

  function choose(place) {
    chosen = shown.length ? Math.min(Math.max(place, 0), shown.length - 1) : -1;
    const top = chosen * rowHeight;
    if (top < list.scrollTop) list.scrollTop = Math.max(0, top);
    else if (top + rowHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + rowHeight - list.clientHeight;
    draw();
    show();
  }

  // --- one difference ---------------------------------------------------------------------------------------------

  function show() {
    const item = shown[chosen];
    at("place").textContent = item ? `${(chosen + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}` : "";
    at("previous").disabled = chosen <= 0;
    at("next").disabled = chosen >= shown.length - 1;
    if (!item) {
      view.replaceChildren(element("p", { class: "empty", text: all.length ? "No difference passes these filters." : "No output differs." }));
      return;
    }
    const [reference, other] = item.sides;
    // Texts that were shortened begin at the same place, within what they share.
    const [from, ...ends] = parting(reference.text[1], other.text[1], reference.token, other.token);
    const heading = element("h3", { text: `Row ${item.row}`, tabindex: "-1", id: "heading" });
    const badges = element("p", { class: "badges" });
    badges.append(direction(item), element("span", { class: "tag", text: names[item.kind] ?? item.kind }), element("span", { class: "muted", text: place_(item) }));
    const prompt = element("details", { class: "prompt", open: "" }, element("summary", { text: `Prompt (${length(item.prompt)})` }));
    const text = element("pre", { class: "text", dir: "auto", tabindex: "0", role: "region", "aria-label": "prompt" });
    text.append(visible(item.prompt[1]));
    if (item.prompt[2]) text.append(omission(item.prompt[2]));
    prompt.append(text);
    const gold = element("p", { class: "gold" }, element("span", { class: "label", text: "Gold" }), " ", element("bdi", { text: item.gold }));
    const columns = element("div", { class: "sides" },
      side(`${item.reference} (reference)`, reference, from, ends[0]), side(item.contender, other, from, ends[1]));
    view.replaceChildren(heading, badges, prompt, gold, firstDifference(item), columns);
    for (const pre of columns.querySelectorAll("pre")) {
      const mark = pre.querySelector("mark");
      pre.scrollTop = Math.max(0, mark.offsetTop - pre.offsetTop - pre.clientHeight / 3);
    }
    const query = controls.query.value.trim().toLowerCase();
    highlight(view, query.startsWith("#") ? "" : query);
  }

  const length = ([before, text, after]) => `${(before + text.length + after).toLocaleString("en")} characters`;

  function side(name, { right, answer, text, finish }, from, to) {
    const made = element("section", { class: "side" }, element("h4", { text: name }));
    const facts = element("dl", {});
    const fact = (label, ...content) => facts.append(element("dt", { text: label }), element("dd", {}, ...content));
    fact("Answer", element("bdi", { text: answer || "none found" }), " ", element("span", { class: right ? "right" : "wrong", text: right ? "✓ right" : "✗ wrong" }));
    fact("Finish", visible(finish || "not known"));
    fact("Length", length(text));
    made.append(facts, output(text[1], from, to, [text[0], text[2]], `output of ${name}`));
    return made;
  }

  function firstDifference(item) {
    const [reference, other] = item.sides;
    const made = element("div", { class: "first" });
    made.append(element("p", { text: `First difference: ${item.unit} ${item.position.toLocaleString("en")}` }));
    const same = sameText(item);
    if (same) made.append(element("p", { class: "muted", text: same }));
    if (reference.token === null && other.token === null) return made;
    const table = element("table", { class: "plain" });
    const head = element("tr", {});
    for (const text of ["", "writes", "probability", "log"]) head.append(element("th", { text, scope: "col" }));
    table.append(element("thead", {}, head));
    const body = element("tbody", {});
    for (const [name, { token: written, logprob }] of [[item.reference, reference], [item.contender, other]]) {
      const known = logprob !== null;
      body.append(element("tr", {}, element("th", { text: name, scope: "row" }), element("td", {}, element("code", { text: token(written) })),
        element("td", { text: known ? `${(100 * Math.exp(logprob)).toPrecision(3)}%` : "not asked for" }),
        element("td", { text: known ? logprob.toFixed(3).replace("-", "−") : "–" })));
    }
    table.append(body);
    made.append(table);
    if (item.gap !== null) {
      const gap = item.gap.toFixed(3).replace("-", "−");
      made.append(element("p", { class: "muted", text: `Probabilities are the reference's, given the shared start; gap ${gap} nats.` }));
    }
    return made;
  }

  /** Return a sentence where the texts do not differ; what was left out of them is not known here. */
  function sameText({ sides: [{ text: [, a, more], token: first }, { text: [, b, beyond], token: second }] }) {
    if (a !== b || more || beyond) return "";
    return first === second ? "The outputs are the same: they were read differently." : "The texts are the same, their token ids are not.";
  }

  // --- what the reader does ---------------------------------------------------------------------------------------

  const STEPS = {
    ArrowDown: () => chosen + 1, j: () => chosen + 1, ArrowUp: () => chosen - 1, k: () => chosen - 1,
    PageDown: () => chosen + page(), PageUp: () => chosen - page(), Home: () => 0, End: () => shown.length - 1,
  };
  const page = () => Math.max(1, Math.floor(list.clientHeight / rowHeight) - 1);
  const typing = (node) => node.matches("input, select, textarea");

  function keyed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !typing(event.target)) {
      event.preventDefault();
      controls.query.focus();
      controls.query.select();
    } else if (event.target === controls.query && (event.key === "Escape" || event.key === "ArrowDown")) {
      event.preventDefault();
      list.focus();
    } else if (event.target === list && event.key === "Enter") {
      open();
    } else if (STEPS[event.key] && (event.target === list || (/^[jk]$/.test(event.key) && !typing(event.target)))) {
      event.preventDefault();
      choose(STEPS[event.key]());
    }
  }

  /** Go to the difference: on a narrow screen it stands below the list. */
  function open() {
    at("heading")?.focus({ preventScroll: true });
    at("pane").scrollIntoView({ block: "nearest" });
    if (matchMedia("(max-width: 60rem)").matches) at("pane").scrollIntoView({ block: "start" });
  }

  function preset(event) {
    const link = event.target.closest("a[data-filter]");
    if (!link) return;
    form.reset();
    for (const [name, value] of Object.entries(JSON.parse(link.dataset.filter))) controls[name].value = value;
    filter();
  }

  function measure() {
    rowHeight = 3.75 * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  async function begin() {
    if (!at("data")) return; // no output differs
    try {
      await load();
    } catch (error) {
      at("loading").textContent = `The differing outputs cannot be shown by this browser (${error.message}).`;
      return;
    }
    measure();
    fillChoices();
    at("loading").remove();
    at("browser").hidden = false;
    filter();
    let waiting = 0;
    form.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(filter, 120);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    at("everything").addEventListener("click", () => {
      form.reset();
      filter();
      controls.query.focus();
    });
    list.addEventListener("scroll", () => requestAnimationFrame(draw));
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (!option) return;
      choose(Number(option.id.slice("option-".length)));
      open();
      list.focus({ preventScroll: true });
    });
    at("previous").addEventListener("click", () => choose(chosen - 1));
    at("next").addEventListener("click", () => choose(chosen + 1));
    at("back").addEventListener("click", () => {
      list.scrollIntoView({ block: "center" });
      list.focus({ preventScroll: true });
    });
    document.addEventListener("keydown", keyed);
    document.addEventListener("click", preset);
    new ResizeObserver(draw).observe(list);
    document.documentElement.dataset.ready = performance.now().toFixed(0); // read by the tests
  }

  begin();
})();
