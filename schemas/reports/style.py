"""What a page looks like, and the few lines of script that draw its charts: light or dark as the reader's system is."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --fore: #1c1f24; --dim: #5c6370; --line: #d9dce1; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14161a; --fore: #e4e6ea; --dim: #9aa1ac; --line: #343a41; --card: #1c1f25; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; background: var(--back); color: var(--fore);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .25rem; } h4 { font-size: .9rem; margin: .75rem 0 0; }
p { margin: .25rem 0; } .dim, figcaption { color: var(--dim); font-size: .85rem; }
code { font-family: ui-monospace, monospace; font-size: .85em; }
.plots { display: grid; gap: 1rem; margin: .75rem 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .75rem; min-width: 0;
  margin: 0 0 1rem; }
.plots .card { margin: 0; } .chart { width: 100%; min-height: 3rem; } .chart svg { max-width: 100%; display: block; }
.missing { border-left: 3px solid #c9a227; padding-left: .5rem; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; } th { text-align: left; white-space: nowrap; }
th, td { padding: .2rem .6rem .2rem 0; vertical-align: top; border-bottom: 1px solid var(--line); min-width: 4rem; }
td { overflow-wrap: normal; } bdi { unicode-bidi: isolate; } .text bdi, .text { white-space: pre-wrap; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .1rem 1rem; margin: .5rem 0; }
dt { color: var(--dim); } dd { margin: 0; min-width: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; } .legend i { display: inline-block; width: .8rem;
  height: .8rem; border-radius: 2px; margin-right: .35rem; vertical-align: -1px; }
.sides { display: grid; gap: .5rem; grid-template-columns: 1fr 1fr; } .sides > div { min-width: 0; }
.bar { display: inline-block; height: .5rem; border-radius: 2px; background: #4c8fd6; }
.text { background: var(--back); border: 1px solid var(--line); border-radius: 4px; padding: .4rem; font-size: .85rem;
  max-height: 12rem; overflow: auto; }
"""

SCRIPT = """
'use strict';
const specs = JSON.parse(document.getElementById('charts').textContent);
const dark = window.matchMedia('(prefers-color-scheme: dark)');
const ofPage = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function config() {
  const fore = ofPage('--fore'), dim = ofPage('--dim'), line = ofPage('--line');
  return { background: 'transparent', font: 'system-ui, sans-serif', view: { stroke: line },
    axis: { labelColor: dim, titleColor: dim, gridColor: line, domainColor: line, tickColor: line,
      titleFontWeight: 'normal', labelOverlap: true } };
}
async function draw() {
  for (const [name, spec] of Object.entries(specs)) {
    const place = document.getElementById(name);
    try {
      await vegaEmbed(place, spec, { actions: false, renderer: 'svg', config: config() });
    } catch (error) {
      place.textContent = 'this chart cannot be drawn: ' + error;
      console.error(error);
    }
  }
}
dark.addEventListener('change', draw);
draw().then(() => { document.body.dataset.drawn = Object.keys(specs).length; });
"""
