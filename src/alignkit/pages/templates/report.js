"use strict";
// Everything that data or a model said reaches the page as text: textContent, never markup.
(() => {
  const store = document.getElementById("data");
  const { steps, overlay } = JSON.parse(store.textContent);
  const colors = ["#2f6fde", "#e0792b", "#2f9e63", "#b04fc4", "#c23b4b", "#6b7a8f"];
  const style = (name) => { // a canvas knows no light-dark()
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const color = getComputedStyle(probe).color;
    probe.remove();
    return color;
  };
  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    return Math.abs(value) >= 1000 && Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(4));
  };

  // Curves

  const charts = [];

  function draw(panel, step, place) {
    const box = make("figure");
    box.append(make("figcaption", panel.title));
    place.append(box);
    const axis = { stroke: style("--dim"), grid: { stroke: style("--edge"), width: 1 }, ticks: { stroke: style("--edge") } };
    const chart = new uPlot({
      width: box.clientWidth,
      height: 190,
      scales: { x: { time: false } },
      cursor: { sync: { key: "step-" + step }, points: { size: 6 }, focus: { prox: 24 } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "")) },
        { ...axis, size: 58, values: (_, ticks) => ticks.map(shown) },
      ],
      series: [
        { label: "step", value: (_, value) => shown(value) },
        ...panel.series.map((one, index) => ({
          label: one.label,
          stroke: colors[index % colors.length],
          dash: index < colors.length ? undefined : [6, 4],
          width: 1.8,
          spanGaps: true,
          points: { show: one.y.filter((y) => y !== null).length < 40, size: 5 },
          value: (_, value) => shown(value),
        })),
      ],
    }, [panel.x, ...panel.series.map((one) => one.y)], box);
    charts.push([chart, box]);
  }

  function drawAll(places, panels, step) {
    panels.forEach((panel) => draw(panel, step, places));
  }

  function drawCurves(element, panels, key) {
    const [first, rest] = element.querySelectorAll(".curves");
    if (!first) return;
    drawAll(first, panels.filter((panel) => panel.first), key);
    const others = panels.filter((panel) => !panel.first), further = element.querySelector(".further");
    further.hidden = !others.length;
    further.addEventListener("toggle", () => drawAll(rest, others, key), { once: true });
  }

  function fill(details) {
    const index = +details.dataset.step, { panels, rollouts } = steps[index];
    drawCurves(details, panels, index);
    const place = details.querySelector(".rollouts");
    if (place) browse(place, rollouts);
  }

  // Rollouts

  function browse(place, rows) {
    const size = 25, sources = [...new Set(rows.flatMap((row) => Object.keys(row.scores)))];
    const columns = [
      ["update", (row) => row.step],
      ["prompt", (row) => row.prompt],
      ["completion", (row) => row.completion],
      ["score", (row) => row.score],
      ...sources.map((name) => [name, (row) => row.scores[name] ?? null]),
      ["KL", (row) => row.kl],
      ["tokens", (row) => row.length],
    ].filter(([, value]) => rows.some((row) => value(row) !== null));
    let by = 0, descending = false, page = 0;
    const search = make("input"), head = make("tr"), body = make("tbody"), pages = make("p", "", "pages");
    search.type = "search";
    search.placeholder = "Find in prompts and completions";
    const table = make("table", undefined, "rolls"), top = make("thead");
    top.append(head);
    table.append(top, body);
    place.append(search, pages, table);
    columns.forEach(([name], index) => {
      const cell = make("th"), button = make("button", name);
      button.addEventListener("click", () => {
        descending = by === index ? !descending : index > 2;
        [by, page] = [index, 0];
        show();
      });
      cell.append(button);
      head.append(cell);
    });
    search.addEventListener("input", () => {
      page = 0;
      show();
    });

    function compare(one, other) {
      const [a, b] = [columns[by][1](one), columns[by][1](other)];
      if (a === null || b === null) return (a === null) - (b === null); // what has no value comes last
      const order = typeof a === "number" ? a - b : a.localeCompare(b);
      return descending ? -order : order;
    }

    function turn(text, to, isThere) {
      const button = make("button", text);
      button.disabled = !isThere;
      button.addEventListener("click", () => {
        page = to;
        show();
      });
      return button;
    }

    function show() {
      const wanted = search.value.toLowerCase();
      const found = rows.filter((row) => (row.prompt + "\n" + row.completion).toLowerCase().includes(wanted)).sort(compare);
      const last = Math.max(Math.ceil(found.length / size) - 1, 0);
      [...head.children].forEach((cell, index) => {
        cell.ariaSort = index === by ? (descending ? "descending" : "ascending") : null;
      });
      pages.replaceChildren(
        turn("‹", page - 1, page > 0),
        make("span", ` ${found.length ? page * size + 1 : 0} to ${Math.min((page + 1) * size, found.length)} of ${found.length} `),
        turn("›", page + 1, page < last),
      );
      body.replaceChildren(...found.slice(page * size, (page + 1) * size).map((row) => {
        const line = make("tr");
        columns.forEach(([name, value], index) => {
          const cell = make("td", undefined, index === 1 || index === 2 ? "" : "number");
          cell.dataset.name = name;
          if (index === 1 || index === 2) {
            cell.append(make("pre", value(row)));
            if (index === 2 && !row.ended) cell.append(make("small", "cut off"));
          } else cell.textContent = shown(value(row));
          line.append(cell);
        });
        return line;
      }));
    }

    show();
  }

  document.querySelectorAll(".overlay").forEach((section) => drawCurves(section, overlay, "all"));
  document.querySelectorAll(".step").forEach((details) => {
    if (details.open) fill(details);
    else details.addEventListener("toggle", () => fill(details), { once: true });
  });
  const open = () => {
    const step = location.hash && document.getElementById(location.hash.slice(1));
    if (step) step.open = true;
  };
  addEventListener("hashchange", open);
  open();
  addEventListener("resize", () => charts.forEach(([chart, box]) => chart.setSize({ width: box.clientWidth, height: 190 })));
  if (store.dataset.running === "yes") {
    const timer = setTimeout(() => location.reload(), 20000);
    for (const kind of ["pointerdown", "keydown", "wheel"]) addEventListener(kind, () => clearTimeout(timer), { once: true });
  }
})();
