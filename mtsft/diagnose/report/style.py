"""How a report looks: on wide and narrow screens, in light and dark, and on paper."""

from mtsft.diagnose.html_parts import PALETTE

# Each has a contrast of 3 : 1 or more to the paper, as WCAG 2.2 (success criterion 1.4.11) wants of graphics.
_LIGHT = ("#0b62c4", "#c2410c", "#15803d", "#8b3fb5", "#0b7285", "#8a5a00", "#c2255c", "#57606a")
_DARK = ("#6cb0ff", "#ff9b66", "#5fd38a", "#cf9bf5", "#4fd0dc", "#e0b050", "#ff8fb3", "#aab4be")


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours))


_CURVES = "".join(f".s-{i} {{ stroke: var(--c{i}); }} .f-{i} {{ fill: var(--c{i}); }}\n" for i in range(len(_LIGHT)))
PAGE_STYLE = (
    f"""{PALETTE}
:root {{ {_variables(_LIGHT)} --soft: #57606a; --wash: #f3f5f7; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} --soft: #aab4be; --wash: #1e2329; }} }}
{_CURVES}"""
    + """
.s-ink { stroke: var(--soft); } .f-ink { fill: var(--soft); } .s-grid { stroke: var(--line); }
svg { display: block; width: 100%; height: auto; fill: none; stroke-linejoin: round; }
svg .text { fill: var(--soft); stroke: none; font-family: system-ui, sans-serif; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 clamp(.8rem, 3vw, 2.5rem) 3rem; max-width: 92rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 50rem; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: inherit; } :target { scroll-margin-top: 3.5rem; } section { scroll-margin-top: 2.5rem; }
.skip { position: absolute; left: -100vw; } .skip:focus { position: static; }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line);
  margin: .8rem 0; overflow-x: auto; }
nav ul { display: flex; gap: 1.1rem; margin: 0; padding: .5rem 0; list-style: none; white-space: nowrap; }
.verdict { font-size: 1.05rem; }
.gap { color: var(--soft); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.4rem 2rem; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column;
  justify-content: space-between; gap: .3rem; } figcaption { font-size: .85rem; } figcaption b { font-size: .95rem; }
.keys { display: flex; flex-wrap: wrap; gap: .1rem .9rem; list-style: none; margin: .15rem 0; padding: 0;
  font-size: .85rem; } .keys li { display: flex; align-items: center; gap: .35rem; overflow-wrap: anywhere; }
.keys svg { flex: none; width: 34px; height: 10px; }
.tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem; }
.scroll { overflow: auto; max-width: 100%; margin: .5rem 0; } .long { max-height: 75vh; }
.long thead th { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; width: max-content; font-size: .88rem; }
caption { text-align: left; color: var(--soft); padding: .2rem 0; }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; border-top: 1px solid var(--line);
  overflow-wrap: break-word; max-width: min(34rem, 65vw); } th { font-weight: 600; }
tbody th { font-weight: 400; font-family: ui-monospace, monospace; font-size: .84rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pairs .n { text-align: left; }
details { margin: .6rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--wash); padding: .6rem .8rem; margin: .4rem 0;
  font: .84rem/1.45 ui-monospace, monospace; max-width: 60rem; }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
footer { margin-top: 2.5rem; padding-top: .8rem; border-top: 1px solid var(--line); font-size: .88rem;
  color: var(--soft); }
@media print {
  :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav, .skip { display: none; } .panels { grid-template-columns: 1fr 1fr; gap: .8rem 1.2rem; }
  figure, tr, caption { break-inside: avoid; } h2, h3, caption, thead, summary { break-after: avoid; }
  .scroll { overflow: visible; max-height: none; } table { width: auto; font-size: 8pt; }
  th, td { padding-right: .5rem; } td { overflow-wrap: anywhere; } .n { overflow-wrap: normal; }
  tbody th, pre { font-size: 7.5pt; }
  details:not([open]) { display: none; }
}
"""
)
