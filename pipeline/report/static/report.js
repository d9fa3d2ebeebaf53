// Comfort: without this file every figure, table and text is there.
(() => {
  "use strict";
  const root = document.documentElement;
  const one = (selector, where = document) => where.querySelector(selector);
  const all = (selector, where = document) => [...where.querySelectorAll(selector)];
  root.classList.add("js");

  // Light or dark, kept where the browser lets a page from the disk keep anything.
  const kept = { get() { try { return localStorage.getItem("theme"); } catch { return null; } },
                 set(value) { try { localStorage.setItem("theme", value); } catch { /* not kept */ } } };
  if (kept.get()) root.dataset.theme = kept.get();
  const button = one(".theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    kept.set(root.dataset.theme);
  });
  one("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

  // A link into something folded unfolds it.
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView();
    if (target.tagName === "DETAILS") one("summary", target).focus({ preventScroll: true });
  };
  addEventListener("hashchange", unfold);
  unfold();

  // Find in the documents of this page.
  const find = one("#find");
  if (find) {
    const documents = all("details.doc").map(node => [node, node.textContent.toLowerCase()]);
    find.addEventListener("input", () => {
      const wanted = find.value.trim().toLowerCase();
      let shown = 0;
      for (const [node, text] of documents) {
        node.hidden = wanted !== "" && !text.includes(wanted);
        shown += !node.hidden;
      }
      one("#found").textContent = wanted ? `${shown} of ${documents.length} documents` : "";
    });
  }

  // Values of a curve under the pointer, or with the arrow keys.
  for (const plot of all(".plot[data-series]")) {
    const { x, label, low, high } = JSON.parse(document.getElementById(plot.dataset.series).textContent);
    const cross = document.createElement("div");
    cross.className = "cross";
    cross.hidden = true;
    cross.append(document.createElement("b"));
    plot.append(cross);
    plot.tabIndex = 0;
    let at = x.length - 1;
    const show = index => {
      at = Math.max(0, Math.min(x.length - 1, index));
      const place = (x[at] - low) / (high - low || 1);
      cross.hidden = false;
      cross.style.left = `${100 * place}%`;
      cross.classList.toggle("flip", place > 0.5);
      cross.firstChild.textContent = label[at];
      plot.setAttribute("aria-description", label[at]);
    };
    plot.addEventListener("pointermove", event => {
      const { left, width } = plot.getBoundingClientRect();
      const value = low + (high - low) * (event.clientX - left) / width;
      let nearest = 0;
      x.forEach((each, i) => { if (Math.abs(each - value) < Math.abs(x[nearest] - value)) nearest = i; });
      show(nearest);
    });
    for (const leaving of ["pointerleave", "blur"]) plot.addEventListener(leaving, () => { cross.hidden = true; });
    plot.addEventListener("keydown", event => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
      if (event.key in steps) { event.preventDefault(); show(at + steps[event.key]); }
    });
  }

  // Which document a token of a shard is of.
  const form = one("#lookup");
  if (form) {
    const data = JSON.parse(one("#rows").textContent), answer = one("#answer");
    const written = n => n.toLocaleString("en-US");
    const element = (tag, text, kind) => {
      const made = document.createElement(tag);
      made.textContent = text;
      if (kind) made.className = kind;
      return made;
    };
    const look = () => {
      const shard = data.shards[form.shard.value], typed = form.token.value.replace(/[,\s_]/g, ""), token = Number(typed);
      answer.replaceChildren();
      answer.hidden = false;
      if (!/^\d+$/.test(typed) || token >= shard.tokens) {
        answer.append(element("p", `This shard has tokens 0 to ${written(shard.tokens - 1)}.`));
        return;
      }
      let low = 0, high = shard.start.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (shard.start[middle] <= token) low = middle; else high = middle - 1;
      }
      const place = token - shard.start[low];
      if (place >= 0 && place < shard.count[low]) {
        const facts = element("dl", "", "facts");
        const fact = (name, value) => facts.append(element("dt", name), element("dd", value));
        fact("document", shard.id[low]);
        fact("source", `${data.sources[shard.source[low]]}: ${data.files[shard.file[low]]} row ${shard.row[low]}`);
        fact("place", `number ${written(place)} of the document's ${written(shard.count[low])}, in ${shard.name}`);
        if (shard.text[low]) fact("begins", shard.text[low]);
        answer.append(facts);
      } else {
        answer.append(element("p", data.every > 1 ? "Its document is not in this page, which has one in "
          + `${written(data.every)}; the command names it.` : "Padding: it fills a window up and belongs to no document."));
      }
      answer.append(element("pre", `python -m pipeline trace ${data.folder}/${shard.mixture} --shard ${shard.number} --token ${token}`, "command"));
    };
    form.addEventListener("submit", event => {
      event.preventDefault();
      look();
      history.replaceState(null, "", `#token=${form.shard.value}:${form.token.value.replace(/[,\s_]/g, "")}`);
    });
    const linked = () => {
      const asked = /^#token=(\w+):(\d+)$/.exec(location.hash);
      if (!asked || !data.shards[asked[1]]) return;
      [form.shard.value, form.token.value] = [asked[1], asked[2]];
      look();
    };
    addEventListener("hashchange", linked);
    linked();
  }
})();
