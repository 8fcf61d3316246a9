"""The look of a page: CSS that needs nothing from outside, light and dark, narrow and wide.

It defines the colours that the plots of `eval.charts` take from their page.
"""

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #fff; --text: #1d1f23; --soft: #666b74;
  --line: #8a8f98; --edge: #e4e1d9; --one: #1f6fb5; --two: #c2501a; --three: #2c8a56; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --text: #e8e6e1;
  --soft: #9ba1ab; --edge: #2d313a; --one: #6db3f2; --two: #f2935c; --three: #69cc97; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 72px; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 20px;
  letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 10px; }
h3 { font-size: 1rem; margin: 24px 0 8px; }
section, details { background: var(--card); border: 1px solid var(--edge); border-radius: 14px;
  padding: 22px; margin-top: 22px; }
.over, .note, th, dt, figcaption { color: var(--soft); font-size: 0.87rem; }
.over, figure, dd { margin: 0; }
.note { max-width: 76ch; margin: 0 0 16px; }
.warning, tr.worse td:last-child { color: var(--two); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 18px 20px;
  margin: 0; }
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dd { font-size: 1.3rem; font-weight: 600; }
.facts small { font-size: 0.87rem; font-weight: 400; color: var(--soft);
  white-space: nowrap; }
.setup { margin: 16px 0 0; color: var(--soft); font-size: 0.93rem; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 20px; }
.plot svg { width: 100%; height: auto; display: block; }
.final { display: block; width: 100%; max-width: 820px; margin: 0 auto; border-radius: 8px; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr));
  gap: 16px; }
.grids img { width: 100%; display: block; border-radius: 6px; }
figure:target { grid-column: 1 / -1; }
.scroll { overflow-x: auto; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
table, .facts { font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--edge); text-align: right; }
td { white-space: nowrap; }
.texts th, .texts td { text-align: left; vertical-align: top; }
.texts td:last-child { white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 600px) { section { padding: 14px; } th, td { padding: 4px 5px; } }
th:first-child, td:first-child { text-align: left; }
tr.better td:last-child { color: var(--three); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; }
pre, code { font: 0.87rem/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-x: auto; }
@media print { section { break-inside: avoid; } }
"""
