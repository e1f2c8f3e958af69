"use strict";
(() => {
  const { columns, rows } = JSON.parse(document.getElementById("table-data").textContent);
  const body = document.querySelector(".tensors tbody");
  if (!body || !rows.length) return;
  const PAGE = 50;
  const search = document.getElementById("search");
  const status = document.getElementById("status");
  const [earlier, later] = ["earlier", "later"].map((id) => document.getElementById(id));
  const heads = [...document.querySelectorAll(".tensors th")];
  const lower = rows.map((row) => (row[0] + " " + row[1]).toLowerCase());
  let order = rows.map((_, i) => i);
  let shown = order;
  let first = 0;
  let sorted = { column: -1, down: false };

  const digits = (x, n) => x.toLocaleString("en", { minimumFractionDigits: n, maximumFractionDigits: n });
  const format = {
    count: (x) => x.toLocaleString("en"),
    share: (x) => digits(100 * x, 100 * x > 0 && 100 * x < 1 ? 1 : 0) + "\u202f%",
    number: (x) => digits(x, 2),
    size: (x) => (x >= 100 ? digits(x, 0) : x.toPrecision(2)),
  };

  function spark(text) {
    const step = 62 / text.length;
    const bars = [...text].map((c, i) => {
      const height = ((parseInt(c, 36) / 35) * 15).toFixed(1);
      return `M${(i * step).toFixed(2)} 16v-${height}h${(step - 0.6).toFixed(2)}v${height}z`;
    });
    const template = document.createElement("template");
    template.innerHTML = '<svg width="62" height="16" role="img" aria-label="histogram of R² from 0 to 1">'
      + `<path d="${bars.join("")}"/></svg>`; // numbers alone
    return template.content;
  }

  function cell(row, c) {
    const td = document.createElement("td");
    const value = row[c];
    const kind = columns[c];
    if (kind === "name") {
      const small = document.createElement("small");
      small.textContent = row[1];
      for (const part of value.split(/(?<=[._])/)) td.append(part, document.createElement("wbr"));
      td.append(small);
    } else if (value === null || value === "") {
      td.textContent = "–";
      td.className = "none";
    } else if (kind === "spark") td.append(spark(value));
    else td.textContent = format[kind](value);
    return td;
  }

  function draw() {
    const lines = shown.slice(first, first + PAGE).map((i) => {
      const tr = document.createElement("tr");
      columns.forEach((kind, c) => kind !== "aside" && tr.append(cell(rows[i], c)));
      return tr;
    });
    body.replaceChildren(...lines);
    const last = Math.min(first + PAGE, shown.length);
    const range = shown.length ? `${digits(first + 1, 0)}–${digits(last, 0)} of ` : "";
    const all = shown.length < rows.length ? ` (${digits(rows.length, 0)} in all)` : "";
    status.textContent = range + digits(shown.length, 0) + all;
    earlier.disabled = first === 0;
    later.disabled = last >= shown.length;
    earlier.hidden = later.hidden = shown.length <= PAGE;
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = words.length ? order.filter((i) => words.every((w) => lower[i].includes(w))) : order;
    first = 0;
    draw();
  }

  const natural = new Intl.Collator("en", { numeric: true });
  function sort(c, head) {
    const down = sorted.column === c ? !sorted.down : columns[c] !== "name";
    sorted = { column: c, down };
    const sign = down ? -1 : 1;
    const compare = columns[c] === "name"
      ? (a, b) => natural.compare(rows[a][c], rows[b][c])
      : (a, b) => rows[a][c] - rows[b][c];
    const empty = (i) => rows[i][c] === null || rows[i][c] === "";
    order = rows.map((_, i) => i).sort((a, b) =>
      (empty(a) - empty(b)) || (empty(a) ? 0 : sign * compare(a, b)) || a - b);
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    filter();
  }

  heads.forEach((head) => {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sort(Number(head.dataset.column), head));
  });
  search.addEventListener("input", filter);
  earlier.addEventListener("click", () => { first = Math.max(0, first - PAGE); draw(); });
  later.addEventListener("click", () => { first += PAGE; draw(); });
  draw();
})();
