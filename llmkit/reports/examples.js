// Search, filters, order and pages of the examples. All text of the data goes into the page by textContent alone.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const rows = JSON.parse(at("rows").textContent);
  const [ID, LABEL, PREDICTION, OUTCOME, SCORE, LABEL_SCORE, VALUE, QUESTION, PIECES] = Array(9).keys();
  const TRUE = 1, PREDICTED = 2, FOLDED = 4, AT_ONCE = 20;
  const { measure, right, judged } = at("browser").dataset;
  const successes = JSON.parse(right);
  const normal = (text) => text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ");
  const haystacks = new Map();
  let found = rows, page = 0;

  const haystack = (row) => {
    if (!haystacks.has(row)) {
      const text = row[PIECES].filter((piece) => piece.length === 2).map((piece) => piece[0]).join("");
      haystacks.set(row, normal([row[ID], row[LABEL], row[PREDICTION], row[QUESTION] || "", text].join("\n")));
    }
    return haystacks.get(row);
  };

  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const number = (value) => (Math.abs(value) <= 1 ? value.toFixed(3) : value.toFixed(2)).replace("-", "\u2212");

  const piece = ([text, kind]) => {
    if (kind === undefined) return make("span", `… (${text.toLocaleString("en")} more characters) `, "cut");
    if (kind === FOLDED) {
      const button = make("button", `… ${text.length.toLocaleString("en")} more characters …`, "cut");
      button.type = "button";
      button.addEventListener("click", () => {
        const opened = make("span", text);
        opened.tabIndex = -1;
        button.replaceWith(opened);
        opened.focus();
      });
      return button;
    }
    if (!kind) return document.createTextNode(text);
    const mark = make("mark", text, ["", "true", "predicted", "both"][kind]);
    mark.title = ["", "true answer", "predicted answer", "true and predicted answer"][kind];
    return mark;
  };

  const named = (title, text) => {
    const line = make("div", `${title}: `);
    const bold = make("b");
    bold.append(make("bdi", text || "nothing"));
    line.append(bold);
    return line;
  };

  const item = (row) => {
    const key = make("div", undefined, "key"), quote = make("blockquote"), small = make("small");
    if (judged !== undefined) key.append(named("true", row[LABEL]), named("predicted", row[PREDICTION]));
    if (row[SCORE] !== null) small.append(make("div", `confidence ${number(row[SCORE])}`));
    if (measure) small.append(make("div", `${measure} ${number(row[VALUE])}`));
    if (row[LABEL_SCORE] !== null && !successes.includes(row[OUTCOME])) {
      small.append(make("div", `true class had ${number(row[LABEL_SCORE])}`));
    }
    if (measure && judged !== undefined) small.append(make("div", row[OUTCOME]));
    small.append(make("bdi", row[ID]));
    key.append(small);
    quote.dir = "auto";
    if (row[QUESTION] !== null) quote.append(make("b", row[QUESTION], "question"));
    quote.append(...row[PIECES].map(piece));
    const entry = make("li");
    entry.append(key, quote);
    return entry;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / AT_ONCE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const start = page * AT_ONCE, shown = found.slice(start, start + AT_ONCE);
    at("found").replaceChildren(...shown.map(item));
    const place = shown.length ? `${(start + 1).toLocaleString("en")} to ${(start + shown.length).toLocaleString("en")} of ` : "";
    at("count").textContent = `${place}${found.length.toLocaleString("en")} ${found.length === 1 ? "example" : "examples"}`;
    at("pages").hidden = pages === 1;
    // A disabled button would lose the focus of the one who has just pressed it.
    at("previous").setAttribute("aria-disabled", page === 0);
    at("next").setAttribute("aria-disabled", page === pages - 1);
  };

  const orders = {
    surest: (a, b) => (b[SCORE] ?? -1) - (a[SCORE] ?? -1),
    "least-sure": (a, b) => (a[SCORE] ?? 2) - (b[SCORE] ?? 2),
    highest: (a, b) => b[VALUE] - a[VALUE],
    lowest: (a, b) => a[VALUE] - b[VALUE],
  };

  const choose = () => {
    const wanted = normal(at("search").value).trim();
    const [outcome, label, prediction] = ["outcome", "label", "prediction"].map((id) => at(id)?.value ?? "");
    found = rows.filter((row) =>
      (outcome === "" || (outcome === "errors" ? !successes.includes(row[OUTCOME]) : row[OUTCOME] === outcome.slice(1))) &&
      (label === "" || row[LABEL] === label.slice(1)) &&
      (prediction === "" || row[PREDICTION] === prediction.slice(1)) &&
      (wanted === "" || haystack(row).includes(wanted)));
    const order = orders[at("order").value];
    if (order) found = found.slice().sort(order);
    page = 0;
    show();
  };

  const turn = (step) => () => {
    const before = page;
    page += step;
    show();
    if (page !== before) at("browser").scrollIntoView({ block: "start" });
  };

  for (const id of ["outcome", "label", "prediction", "order"]) at(id)?.addEventListener("change", choose);
  at("search").addEventListener("input", choose);
  at("previous").addEventListener("click", turn(-1));
  at("next").addEventListener("click", turn(1));
  at("worst")?.remove();
  at("browser").hidden = false;
  choose();
})();
