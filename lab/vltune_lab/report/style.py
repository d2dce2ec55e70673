"""The report's style sheet: phone first, light and dark, print."""

STYLE = """
:root {
  --page: #ffffff; --panel: #f5f6f8; --ink: #1b1f27; --quiet: #5c6470; --line: #d9dde3;
  --federated: #2457d6; --zero: #8b93a0; --worst: #b8480b; --loss: #0b6e63; --site: #bcc6dc;
  --warn: #fff4e0; --warn-line: #d98a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --panel: #1e222a; --ink: #e8ebf0; --quiet: #a0a8b5; --line: #363c47;
    --federated: #86a9ff; --zero: #8b93a0; --worst: #ff9d5c; --loss: #55d0bf; --site: #46516b;
    --warn: #33270f; --warn-line: #d98a00;
  }
}
@media print {
  :root {
    --page: #ffffff; --panel: #ffffff; --ink: #000000; --quiet: #444444; --line: #bbbbbb;
    --federated: #2457d6; --zero: #8b93a0; --worst: #b8480b; --loss: #0b6e63; --site: #bcc6dc;
    --warn: #ffffff;
  }
  html { font-size: 12px; }
  figure, article, tr, .tile, .row { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  .bar, .key::before { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 1060px; margin: 0 auto; padding: 20px 16px 40px; }
h1 { font-size: 1.05rem; margin: 0; color: var(--quiet); font-weight: 600; }
h2 { font-size: 1.2rem; margin: 40px 0 10px; }
h3 { font-size: 1rem; margin: 0 0 6px; }
h4 { font-size: .85rem; margin: 8px 0 2px; color: var(--quiet); font-weight: 600; }
p { margin: 6px 0; }
figure { margin: 0; }
.headline { font-size: 1.35rem; line-height: 1.4; margin: 4px 0 14px; max-width: 46em; }
.quiet, footer { color: var(--quiet); font-size: .87rem; max-width: 62em; }
footer { margin-top: 40px; }
.notices {
  background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 4px;
  margin: 0 0 16px; padding: 10px 14px 10px 32px;
}
.tiles { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); }
.tile {
  background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px;
}
.tile span { display: block; }
.tile .name, .tile .note { color: var(--quiet); font-size: .85rem; }
.tile .value { font-size: 1.4rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.charts {
  display: grid; gap: 8px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr));
}
.charts > * { min-width: 0; }
.chart { width: 100%; max-width: 560px; height: auto; display: block; }
.chart text { font-size: 12px; fill: var(--quiet); font-variant-numeric: tabular-nums; }
.chart .end { font-weight: 650; }
.chart text.federated { fill: var(--federated); }
.chart text.worst { fill: var(--worst); }
.chart text.loss { fill: var(--loss); }
.grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.site { stroke: var(--site); stroke-width: 1.3; }
.line.federated { stroke: var(--federated); stroke-width: 2.6; }
.line.worst { stroke: var(--worst); }
.line.loss { stroke: var(--loss); }
.line.zero-shot { stroke: var(--zero); }
.dashed { stroke-dasharray: 5 4; }
.dot.federated { fill: var(--federated); }
.dot.worst { fill: var(--worst); }
.dot.loss { fill: var(--loss); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td {
  text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top;
}
th { color: var(--quiet); font-weight: 600; font-size: .82rem; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; min-width: 3.6em; }
th, td { overflow-wrap: break-word; }
td:first-child { min-width: 4.6em; }
.pairs td + td { overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; }
.facts dt { color: var(--quiet); }
.facts dd { margin: 0; }
.row {
  display: grid; grid-template-columns: 8.5em 1fr auto; gap: 10px; align-items: center;
  font-size: .87rem; line-height: 1.25; padding: 2px 0;
}
.row .bars { display: block; }
.bar { display: block; height: 6px; min-width: 1px; border-radius: 0 3px 3px 0; }
.bar + .bar { margin-top: 2px; }
.bar.federated { background: var(--federated); }
.bar.zero-shot { background: var(--zero); }
.bar.time { background: var(--loss); height: 10px; }
.figures { display: flex; gap: 8px; font-variant-numeric: tabular-nums; }
.figure { min-width: 2.9em; text-align: right; white-space: nowrap; }
.figure.zero-shot { color: var(--quiet); }
.classes { columns: 2 400px; column-gap: 36px; }
.classes .row { break-inside: avoid; }
.legend { display: flex; gap: 20px; font-size: .87rem; }
.key::before {
  content: ""; display: inline-block; width: 14px; height: 8px; border-radius: 2px;
  margin-right: 6px;
}
.key.federated::before { background: var(--federated); }
.key.zero-shot::before { background: var(--zero); }
.cards {
  display: grid; gap: 14px; margin-top: 10px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
}
.card .charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 200px), 1fr)); }
.card .row { grid-template-columns: 7em 1fr auto; }
.card table { font-size: .87rem; }
.card th, .card td { padding: 2px 10px 2px 0; }
.card th.number { min-width: 0; white-space: nowrap; }
.card {
  background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 14px;
}
.pictures {
  display: grid; gap: 10px; margin: 8px 0;
  grid-template-columns: repeat(auto-fill, minmax(96px, 1fr));
}
.pictures img { width: 100%; height: auto; display: block; border-radius: 4px; }
.drawings img { width: 96px; height: auto; display: block; border-radius: 4px; }
figcaption { font-size: .87rem; line-height: 1.3; margin-top: 3px; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--federated); }
.pairs { margin-bottom: 14px; }
@media (max-width: 480px) {
  table { font-size: .85rem; }
  th, td { padding-right: 8px; }
  td:first-child, th.number { min-width: 0; }
  td:first-child { min-width: 3.7em; }
}
"""
