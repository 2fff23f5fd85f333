"use strict";
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const { calls, colors, day } = JSON.parse(holder.textContent);
  const body = document.getElementById("calls");
  const search = document.getElementById("search");
  const tier = document.getElementById("tier");
  const escalated = document.getElementById("escalated");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const PAGE = 100;
  let shown = PAGE;
  let order = { key: null, down: true };

  // every text from a record enters through textContent, never as markup
  const make = (tag, kind, text) => {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text !== undefined && text !== null) node.textContent = text;
    return node;
  };
  const digits = (value, places) => value === null || value === undefined ? "" : Number(value.toPrecision(places)).toString();
  const seconds = (value) => value === null ? "" : value < 1 ? digits(value * 1000, 3) + " ms" : digits(value, 3) + " s";
  const money = (value) => value === null || value === undefined ? "unknown"
    : value === 0 ? "0" : Number(value.toPrecision(2)).toLocaleString("en", { maximumFractionDigits: 9 });
  const color = (name) => "c" + (name in colors ? colors[name] : 7);
  const chip = (name) => {
    const node = make("span", "key");
    node.append(make("i", "swatch " + color(name)), make("span", "", name === null ? "no answer" : name));
    return node;
  };
  const haystack = new Map();
  const text = (call) => {
    if (!haystack.has(call)) {
      const parts = [call.question, call.answer, call.reason, call.error, call.by];
      for (const a of call.attempts) parts.push(a.name, a.code, a.reason, a.error, a.text);
      haystack.set(call, parts.filter(Boolean).join("\n").toLowerCase());
    }
    return haystack.get(call);
  };

  const matching = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = calls.filter((call) => {
      if (tier.value && (call.by === null ? "(none)" : call.by) !== tier.value) return false;
      if (escalated.value === "left" ? !call.left : escalated.value && call.escalated !== (escalated.value === "yes")) return false;
      return words.every((word) => text(call).includes(word));
    });
    if (order.key) {
      const rank = (call) => call[order.key];
      found.sort((a, b) => {
        const x = rank(a), y = rank(b);
        if (x === y) return 0;
        if (x === null || x === undefined) return 1;
        if (y === null || y === undefined) return -1;
        return (x < y ? -1 : 1) * (order.down ? -1 : 1);
      });
    }
    return found;
  };

  // offsets count characters as Python does, not UTF-16 units
  const coloured = (answer, spans) => {
    const letters = Array.from(answer || "");
    const node = make("div", "answer");
    let place = 0;
    for (const [start, end, name] of spans) {
      if (start > place) node.append(letters.slice(place, start).join(""));
      const part = make("span", "span " + color(name), letters.slice(start, end).join(""));
      part.title = name;
      node.append(part);
      place = Math.max(place, end);
    }
    node.append(letters.slice(place).join(""));
    return node;
  };

  const facts = (attempt) => {
    const parts = [];
    if (attempt.score !== null) {
      const sign = attempt.threshold === null ? "" : (attempt.score >= attempt.threshold ? " >= " : " < ") + digits(attempt.threshold, 4);
      parts.push((attempt.score_name || "score") + " " + digits(attempt.score, 4) + sign);
    }
    if (attempt.latency_s) parts.push(seconds(attempt.latency_s));
    if (attempt.first_token_s) parts.push("first token " + seconds(attempt.first_token_s));
    if (attempt.output_tokens !== null) parts.push(attempt.input_tokens + " in, " + attempt.output_tokens + " out");
    if (attempt.action !== "skip") parts.push(attempt.cost_usd === null ? "cost unknown" : "$" + money(attempt.cost_usd));
    if (attempt.policy) parts.push("policy " + attempt.policy);
    return parts.join(" · ");
  };

  const attemptCard = (attempt) => {
    const card = make("div", "attempt " + color(attempt.name));
    const head = make("div", "attempt-head");
    head.append(chip(attempt.name), make("span", "action " + attempt.action, attempt.action), make("span", "facts", facts(attempt)));
    card.append(head);
    if (attempt.reason && !facts(attempt).startsWith(attempt.reason)) card.append(make("div", "facts", attempt.reason));
    if (attempt.error) card.append(make("div", "bad", attempt.error));
    for (const side of attempt.calls) {
      const cost = side.cost_usd === null ? "cost unknown" : "$" + money(side.cost_usd);
      card.append(make("div", "facts", "+ " + side.purpose + " by " + side.name + " · " + seconds(side.latency_s) + " · " + cost + (side.error ? " · " + side.error : "")));
    }
    if (attempt.text && attempt.action !== "accept") card.append(make("div", "answer draft", attempt.text));
    return card;
  };

  const detail = (call) => {
    const row = make("tr", "detail");
    const cell = make("td");
    cell.colSpan = 7;
    const block = (title, node) => { cell.append(make("h3", "", title), node); };
    // who answered and why comes first; a prompt full of context waits below, folded
    const whole = make("div", "answer", call.question);
    const long = call.question && call.question.length > 300;
    if (call.question && !long) block("Question", whole);
    const attempts = make("div", "attempts");
    for (const attempt of call.attempts) attempts.append(attemptCard(attempt));
    block("Attempts", attempts);
    if (call.error) block("Error", make("div", "bad", call.error));
    if (call.answer) {
      block("Answer", coloured(call.answer, call.spans));
      const names = [...new Set(call.spans.map((span) => span[2]))];
      const key = make("div", "legend");
      for (const name of names) key.append(chip(name));
      cell.append(key);
    }
    if (call.speculation) {
      const said = Object.entries(call.speculation).map(([k, v]) => k + " " + v).join(" · ");
      cell.append(make("div", "facts", said));
    }
    if (long) {
      const folded = make("details", "prompt");
      folded.append(make("summary", "", "Whole prompt, " + call.question.length.toLocaleString("en") + " characters"), whole);
      cell.append(folded);
    }
    row.append(cell);
    return row;
  };

  const summaryRow = (call) => {
    const row = make("tr", "call");
    const opener = make("button", "open", call.asked || "(text not recorded)");
    opener.type = "button";
    opener.setAttribute("aria-expanded", "false");
    const question = make("td", "question");
    question.append(opener);
    const by = make("td");
    by.append(chip(call.by));
    if (call.left) by.append(make("span", "action", "abandoned"));
    else if (call.error) by.append(make("span", "action error", "failed"));
    // one day of calls is told by the page's head, so its rows show the time alone
    const moment = make("td", "moment", day ? call.time.replace(day + " ", "") : call.time);
    moment.title = call.time ? call.time + " UTC" : "";
    row.append(moment, question, by);
    row.append(make("td", "number", digits(call.score, 4)), make("td", "why", call.error || call.reason));
    row.append(make("td", "number", seconds(call.latency)), make("td", "number", money(call.cost)));
    row.addEventListener("click", () => {
      const open = opener.getAttribute("aria-expanded") === "true";
      opener.setAttribute("aria-expanded", String(!open));
      if (open) row.nextElementSibling.remove();
      else row.after(detail(call));
    });
    return row;
  };

  const draw = () => {
    const found = matching();
    body.replaceChildren(...found.slice(0, shown).map(summaryRow));
    count.textContent = found.length === calls.length ? calls.length + " calls" : found.length + " of " + calls.length + " calls";
    more.hidden = found.length <= shown;
  };
  const restart = () => { shown = PAGE; draw(); };
  search.addEventListener("input", restart);
  tier.addEventListener("change", restart);
  escalated.addEventListener("change", restart);
  more.addEventListener("click", () => { shown += PAGE; draw(); });
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const key = button.dataset.key;
      order = { key, down: order.key === key ? !order.down : true };
      for (const other of document.querySelectorAll("th[aria-sort]")) {
        const own = other.contains(button);
        other.setAttribute("aria-sort", !own ? "none" : order.down ? "descending" : "ascending");
      }
      restart();
    });
  }
  draw();
})();
