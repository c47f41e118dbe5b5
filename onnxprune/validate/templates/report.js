"use strict";
(() => {
  const NARROW_PX = 560;
  const PRINT_PX = 640;
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const root = document.documentElement;
  let printing = false;
  let closed = [];

  function colored(value, style) {
    if (Array.isArray(value)) return value.map((item) => colored(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [
        key,
        /color$/.test(key) && typeof item === "string" && item.startsWith("--")
          ? style.getPropertyValue(item).trim()
          : colored(item, style),
      ]),
    );
  }

  function merged(base, extra) {
    const result = { ...base };
    for (const [key, item] of Object.entries(extra)) {
      const both = [result[key], item].every(
        (side) => side && typeof side === "object" && !Array.isArray(side),
      );
      result[key] = both ? merged(result[key], item) : item;
    }
    return result;
  }

  function themed(layout, style) {
    const axis = {
      gridcolor: "--grid",
      linecolor: "--rule",
      zerolinecolor: "--rule",
      tickcolor: "--rule",
      tickfont: { color: "--text-muted", size: 12 },
      title: { font: { color: "--text-muted", size: 13 } },
    };
    let result = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: style.getPropertyValue("--font").trim(), color: "--text", size: 13 },
      hoverlabel: { bgcolor: "--card", bordercolor: "--rule", font: { color: "--text" } },
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) result[key] = axis;
    }
    result = merged(result, layout);
    return colored(result, style);
  }

  function countAxis(plot, data) {
    const log = document.getElementById(`log-${plot.key}`).checked;
    const most = Math.max(1, ...data.flatMap((trace) => trace.y));
    return log
      ? { type: "log", range: [-0.3, Math.log10(most) * 1.05 + 0.05], dtick: 1, exponentformat: "SI" }
      : { type: "linear", range: [0, most * 1.05] };
  }

  function draw(plot) {
    const element = document.getElementById(`plot-${plot.key}`);
    const style = getComputedStyle(root);
    const width = printing ? PRINT_PX : element.clientWidth;
    plot.width = width;
    const narrow = width < (plot.figure.narrow_below_px ?? NARROW_PX) && plot.figure.narrow;
    let layout = narrow ? merged(plot.figure.layout, plot.figure.narrow) : plot.figure.layout;
    const chosen = plot.choices.length ? plot.choices[plot.chosen].data : null;
    const data = plot.figure.data.map((trace, i) => (chosen ? { ...trace, ...chosen[i] } : trace));
    if (chosen) layout = merged(layout, { yaxis: countAxis(plot, chosen) });
    const coarse = matchMedia("(pointer: coarse)").matches;
    return Plotly.react(
      element,
      colored(data, style),
      { ...themed(layout, style), width, height: plot.height_px, dragmode: coarse ? false : "zoom" },
      { displayModeBar: false },
    );
  }

  function fillTable(body, trace, other) {
    body.replaceChildren(
      ...trace.x.map((center, bin) => {
        const row = document.createElement("tr");
        for (const [tag, value] of [["th", center], ["td", trace.y[bin]], ["td", other.y[bin]]]) {
          const cell = document.createElement(tag);
          if (tag === "th") cell.scope = "row";
          cell.textContent = value === null ? "–" : String(value).replace("-", "\u2212");
          row.append(cell);
        }
        return row;
      }),
    );
  }

  function offer(plot) {
    const select = document.getElementById(`choose-${plot.key}`);
    const show = () => {
      plot.chosen = Number(select.value);
      const choice = plot.choices[plot.chosen];
      document.getElementById(`chosen-${plot.key}`).textContent = choice.caption;
      document.getElementById(`plot-${plot.key}`)
        .setAttribute("aria-label", `${plot.alternative} ${choice.label}: ${choice.caption}`);
      fillTable(document.getElementById(`bins-${plot.key}`), ...choice.data);
    };
    select.addEventListener("change", () => {
      show();
      draw(plot);
    });
    document.getElementById(`log-${plot.key}`).addEventListener("change", () => draw(plot));
    show();
  }

  function key(row, column) {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
  }

  function compared(column, numeric, sign) {
    return (one, other) => {
      if (!numeric) {
        return sign * one.cells[column].textContent.localeCompare(other.cells[column].textContent);
      }
      const [a, b] = [key(one, column), key(other, column)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a - b);
    };
  }

  function makeSortable(table) {
    const headers = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    headers.forEach((header, column) => {
      const numeric = original.some((row) => key(row, column) !== null);
      const orders = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
      orders.push("none");
      const button = header.querySelector("button");
      button.addEventListener("click", () => {
        const order = orders[(orders.indexOf(header.getAttribute("aria-sort")) + 1) % 3];
        for (const each of headers) each.setAttribute("aria-sort", "none");
        header.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const rows = [...original];
        if (order !== "none") rows.sort(compared(column, numeric, sign));
        body.replaceChildren(...rows);
        document.getElementById("sorted").textContent =
          order === "none" ? "In the original order." : `Sorted by ${button.textContent}, ${order}.`;
      });
    });
  }

  const drawAll = () => Promise.all(plots.map(draw));

  for (const plot of plots) {
    if (plot.choices.length) offer(plot);
  }
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  drawAll().then(() => {
    // Plotly measures texts in it; to a screen reader it would be an image without a name.
    document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true");
    root.dataset.plots = "drawn";
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  let pending = 0;
  const observer = new ResizeObserver(() => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => {
      if (printing) return;
      for (const plot of plots) {
        const width = document.getElementById(`plot-${plot.key}`).clientWidth;
        if (width !== plot.width) draw(plot);
      }
    });
  });
  observer.observe(document.getElementById("content"));

  addEventListener("beforeprint", () => {
    printing = true;
    root.classList.add("printing");
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    printing = false;
    root.classList.remove("printing");
    for (const details of closed) details.open = false;
    drawAll();
  });
})();
